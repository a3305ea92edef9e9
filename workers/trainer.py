"""The trainer as a Ray actor: one per run and data-parallel rank."""

import os
from typing import TYPE_CHECKING, Any

from policies.algorithm import PolicyGradient
from policies.selection import Selection
from rollout.types import Experience
from workers.config import DeepSpeedConfig, TrainingConfig
from workers.distributed import free_port, prepare
from workers.files import write_atomically
from workers.heap import release_freed_memory

if TYPE_CHECKING:
    from policies.tensors import Packed


class TrunkChanged(RuntimeError):
    """Something wrote into the weights that a run shares with the base."""


class Trainer:
    """Updates one selection's weights, from one seed's rollouts.

    Args:
        selection, seed: the run.
        rank, ranks: this actor's place among the run's data-parallel ranks.
        gpu: whether the actor holds (a share of) a GPU.
    """

    def __init__(self, selection: Selection, seed: int, rank: int = 0, ranks: int = 1, gpu: bool = False):
        self.selection, self.seed, self.rank, self.ranks, self.gpu = selection, seed, rank, ranks, gpu
        import workers.learner  # noqa: F401

    def __repr__(self) -> str:
        part = f", rank {self.rank}/{self.ranks}" if self.ranks > 1 else ""
        return f"Trainer({self.selection.name}, seed {self.seed}{part})"

    def address(self) -> tuple[str, int]:
        """Where rank 0 will listen."""
        import ray

        return ray.util.get_node_ip_address(), free_port()

    def start(
        self,
        model: str,
        address: tuple[str, int],
        algorithm: PolicyGradient,
        training: TrainingConfig,
        section: DeepSpeedConfig,
        trust_remote_code: bool,
        engine_device: str,
        shared_trunk: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Join the run's process group, map the trunk, build the DeepSpeed engine.

        Args:
            engine_device: policies.tensors.device_name of the run's engine; on the same GPU, weights go by handle.
            shared_trunk: from the TrunkHost of this GPU; None loads the checkpoint (mapped, on CPUs).
        """
        import torch

        from policies.tensors import device_name
        from policies.trunk import Trunk
        from workers.learner import Learner

        prepare(self.rank, self.ranks, *address, gpu=self.gpu)
        torch.manual_seed(self.seed)
        if shared_trunk:
            trunk = Trunk.attach(shared_trunk, torch.device("cuda", 0))
        else:
            trunk = Trunk.load(model, training.dtype, "cuda" if self.gpu else "cpu", trust_remote_code)
        self.by_handle = self.gpu and device_name() == engine_device
        self.digest = trunk.digest()
        self.learner = Learner(trunk, self.selection, algorithm, training, section, self.rank, self.ranks)
        return {"trainable_parameters": self.learner.parameters, "pid": os.getpid()}

    def update(self, experience: Experience, step: int) -> "tuple[dict[str, float], Packed]":
        """One rollout batch; returns its metrics and the new weights by Hugging Face name (rank 0; else none)."""
        from policies.tensors import to_arrays, to_handles

        metrics = experience.seconds | experience.metrics | self.learner.update(experience, step)
        release_freed_memory()
        weights = self.learner.weights()
        if self.rank != 0:
            return metrics, {}
        if self.by_handle:
            self.served = weights  # a handle is good for as long as the memory behind it
            return metrics, to_handles(weights)
        return metrics, to_arrays(weights)

    def finish(self, folder: str) -> None:
        """Write the trained parameters to `<folder>/model.safetensors` under their Hugging Face names.

        Raises:
            TrunkChanged: the frozen weights are not what they were at the start; the run is worthless.
        """
        from safetensors.torch import save

        if self.learner.trunk.digest() != self.digest:
            raise TrunkChanged("the frozen weights changed while this run trained")
        weights = {name: weight.cpu().contiguous() for name, weight in self.learner.weights().items()}
        if self.rank == 0:
            write_atomically(f"{folder}/model.safetensors", lambda file: file.write(save(weights)))
