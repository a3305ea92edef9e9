"""Short training of one selection on one batch of the base's responses, without rollouts of its own."""

from torch import Tensor

from layersweep.policies.algorithms.base import PolicyGradient
from layersweep.policies.algorithms.rollout_correction import resolve
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.selection import Selection
from layersweep.rollout.types import Experience
from layersweep.workers.config import DeepSpeedConfig, TrainingConfig

from .deepspeed_backend import DeepSpeedBackend
from .micro_batch_size import micro_batch_tokens, unchecked_tokens
from .update_loop import UpdateLoop


def train_on_batch(
    trunk: Trunk, algorithm: PolicyGradient, training: TrainingConfig, section: DeepSpeedConfig, engine_dtype: str,
    experience: Experience, selection: Selection, gpu_bytes: float = 0.0,
) -> tuple[int, dict[str, Tensor]]:  # fmt: skip
    """Train a selection on one batch as a run's trainer does at its first step; torch.distributed is initialised.

    Args:
        training: with the learning rates; its epochs and minibatches are the optimizer steps.
        engine_dtype: in which the engine computes; decides the rollout correction where the spec leaves it.
        gpu_bytes: memory of the GPU; 0 on CPUs.

    Returns:
        Optimizer steps that were made, 0 where the batch has no signal; and the weights by Hugging Face name, adapters
        merged.

    Raises:
        NonFinite: the training collapsed.
    """
    shape = Architecture.from_config(trunk.model.config.to_dict())
    chosen = micro_batch_tokens(training, shape, selection, gpu_bytes)
    unchecked = unchecked_tokens(training, shape, selection, gpu_bytes)
    training = training.model_copy(update={"micro_batch_tokens": chosen})
    correction = resolve(algorithm.rollout_correction, training.dtype, engine_dtype)
    algorithm = algorithm.model_copy(update={"rollout_correction": correction})
    backend = DeepSpeedBackend(Policy(trunk, selection), training, section)
    loop = UpdateLoop(trunk, backend, algorithm, training, unchecked_tokens=unchecked)
    metrics = loop.update(experience, step=1)  # step 0 measures the halves' agreement too, which the probe has already
    return int(metrics["optimizer_steps"]), backend.policy.served(backend.weights())
