"""Settings of a run's training, and the update loop that they make over a trunk."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layersweep.policies.config import AlgorithmConfig
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig

if TYPE_CHECKING:  # torch, which the driver does without
    from layersweep.policies.model.trunk import Policy

    from .update_loop import UpdateLoop


@dataclass(frozen=True)
class TrainingSetup:
    """Settings of a run's training, the same on all of its ranks."""

    algorithm: AlgorithmConfig
    """Section of the spec; an algorithm of the user's own is imported where the update loop is made."""
    training: TrainingConfig
    """Section of the spec, with the run's learning rate."""
    deepspeed: DeepSpeedConfig
    engine_dtype: str
    """Coarsest format in which the engine computes; decides the rollout correction where the spec leaves it."""
    stale: bool = False
    """Whether batches are by earlier weights; decides the rollout correction likewise."""

    def update_loop(self, policy: "Policy", gpu_bytes: float = 0.0, rank: int = 0, ranks: int = 1) -> "UpdateLoop":
        """Make the update loop of a selection, its micro batches as large as memory allows.

        Args:
            policy: of the selection; its parameters may be partitioned from now on.
            gpu_bytes: memory of the GPU that it may take; 0 on CPUs.
            rank, ranks: this process's place in the run's data-parallel group; torch.distributed is initialised.
        """
        import torch

        from layersweep.policies.algorithms.rollout_correction import resolve
        from layersweep.policies.model.architecture import Architecture

        from .deepspeed_backend import DeepSpeedBackend
        from .micro_batch_size import micro_batch_tokens, unchecked_tokens
        from .update_loop import UpdateLoop

        trunk, selection = policy.trunk, policy.selection
        shape = Architecture.from_config(trunk.model.config.to_dict())
        chosen = micro_batch_tokens(self.training, shape, selection, gpu_bytes, trunk.kernels)
        unchecked = unchecked_tokens(self.training, shape, selection, gpu_bytes, trunk.kernels)
        if ranks > 1:  # one may lack a kernel that the others have, and all must make the same micro batches
            least = torch.tensor([chosen, unchecked], dtype=torch.float64, device=trunk.model.device)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
            chosen, unchecked = int(least[0]), float(least[1])
        training = self.training.model_copy(update={"micro_batch_tokens": chosen})
        algorithm = self.algorithm.build()
        correction = resolve(algorithm.rollout_correction, training.dtype, self.engine_dtype, stale=self.stale)
        algorithm = algorithm.model_copy(update={"rollout_correction": correction})
        backend = DeepSpeedBackend(policy, training, self.deepspeed, ranks)
        return UpdateLoop(trunk, backend, algorithm, training, rank, ranks, unchecked)
