"""The actor that holds the base weights for the trainers of a shared GPU."""

from typing import Any

from layersweep.workers.startup.model_source import ModelSource

from .portable_errors import portable_errors


@portable_errors
class BaseWeightsActor:
    """Holds the frozen base on one GPU for the layer trainers that share it."""

    def __repr__(self) -> str:
        return "BaseWeightsActor()"

    def alive(self) -> None:
        """Answer a health check."""

    def load(self, model: ModelSource, dtype: str) -> dict[str, Any]:
        """Load the base onto the GPU; return what Trunk.attach needs."""
        from layersweep.policies.model.trunk import Trunk

        self.trunk = Trunk.load(model.here(), dtype, "cuda", model.trust_remote_code, computes=False)
        return self.trunk.share()
