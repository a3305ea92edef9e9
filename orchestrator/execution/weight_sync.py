"""Weight synchronisation: one run's weights to its engine."""

from typing import Protocol

from layersweep.rollout.types import Pushed

from .clients import Reference
from .context import SweepContext
from .engine_slot import EngineSlot


class WeightSource(Protocol):
    """Owner of a run's weights: its trainers."""

    def weights(self) -> Reference:
        """Ask for the weights, for EngineClient.push."""


class WeightSync:
    """Synchronisation of one run's weights with its engine.

    Args:
        run: name.
        slot: the run's engine slot.
    """

    def __init__(self, run: str, context: SweepContext, slot: EngineSlot):
        self.run, self.context, self.slot = run, context, slot
        self.synced: tuple[int, int] | None = None
        """Generation of the engine and version of the weights that it got last; None where it has none."""

    def is_current(self, version: int) -> bool:
        """Tell whether the engine can serve this version: it has the base, version 0, always."""
        return version == 0 or self.synced == (self.slot.generation, version)

    async def sync(
        self, version: int, source: WeightSource | None = None, weights: Reference | None = None
    ) -> Pushed | None:
        """Push weights unless the engine has them; what it took, None if nothing.

        Args:
            version: steps that the weights have been trained.
            source: is asked for the weights where these are not given; None loads the overlay file.
            weights: from the trainers' last call.
        """
        if self.is_current(version):
            return None
        engine, target = self.slot.engine, (self.slot.generation, version)
        if weights is None and source:
            weights = source.weights()
        if weights is None:
            path = f"{overlay_folder(self.context, self.run)}/model.safetensors"
            push = engine.load(self.run, version, path)
        else:
            push = engine.push(self.run, version, weights)
        pushed = await self.context.timeouts.wait("push", push)
        self.synced = target
        return pushed

    def forget(self) -> None:
        """Push anew before the next use: the weights are others, or the engine's are unknown."""
        self.synced = None

    def drop(self) -> None:
        """Free what the engine holds of this run."""
        self.slot.engine.drop(self.run)
        self.forget()


def overlay_folder(context: SweepContext, run: str) -> str:
    """Name the folder of a run's trained weights."""
    return f"{context.plan.folder}/overlays/{run}"
