"""The actor that measures the base's layers, and trains them for a few steps, before a sweep trains anything."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layersweep.policies.config import AlgorithmConfig
from layersweep.policies.selection import Selection
from layersweep.rollout.types import Experience
from layersweep.workers.config import LearningRates, TrainingConfig
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.training.setup import TrainingSetup

from .portable_errors import portable_errors

if TYPE_CHECKING:
    from layersweep.policies.model.tensor_transport import TransportTensors


@portable_errors
class Prober:
    """Holds the base, on CPUs or a GPU.

    Args:
        model: the base.
        algorithm, training: of the spec; they decide advantages and loss.
        gpus: GPUs that the actor holds, a fraction or more; with 0 it computes on CPUs.
    """

    def __init__(self, model: ModelSource, algorithm: AlgorithmConfig, training: TrainingConfig, gpus: float = 0.0):
        from layersweep.policies.model.architecture import Architecture
        from layersweep.policies.model.trunk import Trunk
        from layersweep.workers.training.micro_batch_size import micro_batch_tokens

        self.algorithm, self.gpus, self.store = algorithm.build(), gpus, None
        device = "cuda" if gpus else "cpu"
        self.trunk = Trunk.load(model.here(), training.dtype, device, model.trust_remote_code, training.attention)
        shape = Architecture.from_config(self.trunk.model.config.to_dict())
        chosen = micro_batch_tokens(training, shape, Selection.full(), self._gpu_bytes(), self.trunk.kernels)
        rates = LearningRates(layer=1.0, full=1.0)  # nothing is trained, and the spec's may be still to be found
        self.training = training.model_copy(update={"micro_batch_tokens": chosen, "learning_rate": rates})

    def __repr__(self) -> str:
        return "Prober()"

    def _gpu_bytes(self) -> float:
        """Return the actor's share of its GPU's memory; 0 on CPUs."""
        import torch

        return min(1.0, self.gpus) * torch.cuda.get_device_properties(0).total_memory if self.gpus else 0.0

    def probe(self, experience: Experience, further: Sequence[Selection] = ()) -> list[dict[str, Any]]:
        """Return rows of probe.parquet, without sweep and seed, from a batch of the base's responses.

        Args:
            further: selections beside every layer and its parts.
        """
        from layersweep.workers.training.probe import probe

        return probe(self.trunk, self.algorithm, self.training, experience, further)

    def train(
        self, experience: Experience, selection: Selection, setup: TrainingSetup
    ) -> "tuple[dict[str, float], TransportTensors]":
        """Train a selection, from the base on, on one batch of the base's responses.

        Args:
            setup: of the run; epochs and minibatches of its `training` are the optimizer steps.

        Returns:
            Optimizer steps that were made, 0 where the batch has no signal; and the weights.

        Raises:
            NonFinite: the training collapsed.
        """
        from layersweep.policies.model.tensor_transport import to_arrays
        from layersweep.workers.training.distributed import prepare, serve_store
        from layersweep.workers.training.memory import release_unused
        from layersweep.workers.training.screening import train_on_batch

        if self.store is None:
            self.store = serve_store()
            prepare(0, 1, "localhost", self.store.port, gpu=self.gpus > 0)
        steps, weights = train_on_batch(self.trunk, setup, experience, selection, self._gpu_bytes())
        answer = {"screened_steps": steps}, to_arrays(weights)
        release_unused(self.gpus > 0)
        return answer
