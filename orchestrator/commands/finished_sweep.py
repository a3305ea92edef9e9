"""A finished sweep as `dissect` and `compose` find it: its completed runs, and what is known of their variants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from layersweep.orchestrator.planning.combined_runs import read_profile
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.folders import absolute_folder
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.selection import LowRank, Selection, run_name
from layersweep.workers.storage.files import read_bytes, write_atomically
from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.storage.table_schema import TableSchema

from .export import overlays

VARIANTS = "variants"
"""Folder within the sweep's that variants are scored in."""


@dataclass(frozen=True)
class FinishedSweep:
    """Completed runs of a sweep, whose weights are there."""

    folder: str
    spec: SweepSpec
    table: pd.DataFrame
    """The contribution table."""
    selections: dict[str, Selection]
    """Completed selections by name, in the order of the table."""
    layers: int
    """Layers of the model."""

    def order(self, names: Sequence[str]) -> list[str]:
        """Sort selections by their scores on the selection split, the best first."""
        scores = self.table.set_index("selection")["score"]
        return sorted(names, key=lambda name: -scores[name])

    def change_facts(self, variants: Sequence[str]) -> pd.DataFrame:
        """Return what is known of variants' changes of the base, means over seeds, by variant."""
        rows = [
            {"variant": variant} | {k: v for k, v in stored.items() if k.startswith("change")}
            for variant in variants
            for seed in self.spec.seeds
            if (stored := RunStore(f"{self.folder}/{VARIANTS}", run_name(variant, seed)).metadata())
        ]
        return pd.DataFrame(rows, columns=["variant", "change_norm", "changed_parameters"]).groupby("variant").mean()

    def write(self, schema: TableSchema, rows: pd.DataFrame, keys: Sequence[str]) -> str:
        """Write rows into a table in the sweep's folder, those of the same keys replaced; returns its path."""
        target, frame = f"{self.folder}/{schema.name}.parquet", schema.frame(rows)
        if (content := read_bytes(target)) is not None:
            frame = pd.concat([schema.parse(content), frame]).drop_duplicates(list(keys), keep="last")
        write_atomically(target, partial(schema.write, frame.reset_index(drop=True)))
        return target


def open_sweep(folder: str, overrides: Mapping[str, Any] | None = None) -> FinishedSweep:
    """Find a sweep's completed runs.

    Args:
        folder: of the sweep, or its URI.
        overrides: values that replace those of its spec, such as `resources.engines`.

    Raises:
        SpecError: there is no sweep, or no completed run with its weights.
    """
    folder = absolute_folder(folder.rstrip("/"))
    spec = load_spec(f"{folder}/sweep.yaml", overrides)
    output, _, name = folder.rpartition("/")
    if name != spec.name:
        raise SpecError([f"name: the sweep in {folder} is {spec.name!r} by its spec; name the folder so too"])
    spec = spec.model_copy(update={"output": output})  # where it is now: it may have been moved
    try:
        table = read_profile(folder)
    except ValueError as error:
        raise SpecError([str(error).removeprefix("profile: ")]) from error
    there = {overlay.selection for overlay in overlays(folder)}
    boosts = {run.name for run in spec.combine if run.how == "boost"}
    own = ~table["kind"].isin(["trial", "control"])
    completed = table[(table["status"] == "completed") & table["selection"].isin(there) & own]
    if completed.empty:
        raise SpecError([f"{folder}: no run of this sweep has completed and left its weights"])
    selections = {row["selection"]: _selection(row, boosts) for row in completed.to_dict("records")}
    return FinishedSweep(folder, spec, table, selections, int(table["model_layers"].max()))


def _selection(row: dict[str, Any], boosts: set[str]) -> Selection:
    name, layers = row["selection"], tuple(int(k) for k in row["layers"])
    if row["kind"] == "full":
        return Selection.full()
    if name in boosts:
        return Selection.boost(layers, name)
    lora = None if pd.isna(row["lora_rank"]) else LowRank(int(row["lora_rank"]), float(row["lora_alpha"]))
    return Selection(name, row["kind"], layers, None if pd.isna(row["modules"]) else row["modules"], lora)
