"""Short training of one selection on one batch of the base's responses, without rollouts of its own."""

from torch import Tensor

from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.selection import Selection
from layersweep.rollout.types import Experience

from .setup import TrainingSetup


def train_on_batch(
    trunk: Trunk, setup: TrainingSetup, experience: Experience, selection: Selection, gpu_bytes: float = 0.0
) -> tuple[int, dict[str, Tensor]]:
    """Train a selection on one batch as a run's trainer does at its first step; torch.distributed is initialised.

    Args:
        setup: of the run; epochs and minibatches of its `training` are the optimizer steps.
        gpu_bytes: memory of the GPU; 0 on CPUs.

    Returns:
        Optimizer steps that were made, 0 where the batch has no signal; and the weights by Hugging Face name, adapters
        merged.

    Raises:
        NonFinite: the training collapsed.
    """
    loop = setup.update_loop(Policy(trunk, selection), gpu_bytes)
    metrics = loop.update(experience, step=1)  # step 0 measures the halves' agreement too, which the probe has already
    return int(metrics["optimizer_steps"]), loop.policy.served(loop.backend.weights())
