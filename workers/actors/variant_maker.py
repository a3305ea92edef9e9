"""The actor that makes variants' weights from the overlays of finished runs."""

from functools import lru_cache
from typing import TYPE_CHECKING

from layersweep.policies.selection import run_name
from layersweep.policies.variant import Variant
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.storage.files import resolve_uri, write_atomically

from .portable_errors import portable_errors

if TYPE_CHECKING:
    from torch import Tensor

    from layersweep.policies.model.tensor_transport import TransportTensors

OVERLAYS = 4
"""Overlays kept in memory."""


def overlay_file(folder: str, run: str) -> str:
    """Name the file of a run's trained weights in a sweep's folder."""
    return f"{folder}/overlays/{run}/model.safetensors"


@portable_errors
class VariantMaker:
    """Reads overlays and the base, and adds them up as variants say.

    Args:
        model: the base.
        folder: the sweep's, a path or an fsspec URI.
    """

    def __init__(self, model: ModelSource, folder: str):
        from layersweep.policies.model.stored_weights import StoredWeights

        self.base, self.folder = StoredWeights(model.here()), folder
        self.overlay = lru_cache(OVERLAYS)(self._overlay)

    def __repr__(self) -> str:
        return "VariantMaker()"

    def make(self, variant: Variant, seed: int) -> "tuple[dict[str, float], TransportTensors]":
        """Return facts about a variant's change of the base, and its weights.

        Facts: `change_norm`, its L2 norm; `changed_parameters`, entries other than 0.
        """
        from layersweep.policies.model.tensor_transport import to_arrays

        facts, weights = self._weights(variant, seed)
        return facts, to_arrays(weights)

    def write_overlay(self, variant: Variant, seed: int, folder: str) -> dict[str, float]:
        """Write a variant's weights to `<folder>/model.safetensors`, as a run's; return facts about its change.

        Raises:
            OSError: they could not be written.
        """
        from layersweep.workers.storage.tensor_file import write_tensors

        facts, weights = self._weights(variant, seed)
        write_atomically(f"{folder}/model.safetensors", lambda file: write_tensors(file, weights), durable=True)
        return facts

    def _weights(self, variant: Variant, seed: int) -> "tuple[dict[str, float], dict[str, Tensor]]":
        from layersweep.policies.model.variant_weights import variant_weights

        overlays = {change.selection: self.overlay(run_name(change.selection, seed)) for change in variant.changes}
        weights, deltas = variant_weights(variant, self.base, overlays)
        norm = sum(float(delta.square().sum()) for delta in deltas.values()) ** 0.5
        count = sum(int(delta.count_nonzero()) for delta in deltas.values())
        return {"change_norm": norm, "changed_parameters": count}, weights

    def _overlay(self, run: str) -> "dict[str, Tensor]":
        from safetensors.torch import load

        filesystem, path = resolve_uri(overlay_file(self.folder, run))
        return load(filesystem.cat_file(path))
