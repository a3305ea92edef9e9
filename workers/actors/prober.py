"""The actor that measures the base's layers before anything is trained."""

from typing import Any

from layersweep.policies.config import AlgorithmConfig
from layersweep.rollout.types import Experience
from layersweep.workers.config import LearningRates, TrainingConfig
from layersweep.workers.startup.model_source import ModelSource

from .portable_errors import portable_errors


@portable_errors
class Prober:
    """Holds the base, on CPUs or a GPU.

    Args:
        model: the base.
        algorithm, training: of the spec; they decide advantages and loss.
        gpus: GPUs that the actor holds, a fraction or more; with 0 it computes on CPUs.
    """

    def __init__(self, model: ModelSource, algorithm: AlgorithmConfig, training: TrainingConfig, gpus: float = 0.0):
        import torch

        from layersweep.policies.model.architecture import Architecture
        from layersweep.policies.model.trunk import Trunk
        from layersweep.policies.selection import Selection
        from layersweep.workers.training.micro_batch_size import micro_batch_tokens

        self.algorithm = algorithm.build()
        self.trunk = Trunk.load(model.here(), training.dtype, "cuda" if gpus else "cpu", model.trust_remote_code)
        shape = Architecture.from_config(self.trunk.model.config.to_dict())
        memory = min(1.0, gpus) * torch.cuda.get_device_properties(0).total_memory if gpus else 0.0
        chosen = micro_batch_tokens(training, shape, Selection.full(), memory)
        rates = LearningRates(layer=1.0, full=1.0)  # nothing is trained, and the spec's may be still to be found
        self.training = training.model_copy(update={"micro_batch_tokens": chosen, "learning_rate": rates})

    def __repr__(self) -> str:
        return "Prober()"

    def probe(self, experience: Experience) -> list[dict[str, Any]]:
        """Return rows of probe.parquet, without sweep and seed, from a batch of the base's responses."""
        from layersweep.workers.training.probe import probe

        return probe(self.trunk, self.algorithm, self.training, experience)
