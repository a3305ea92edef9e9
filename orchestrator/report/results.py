"""What a report is made of, read from a sweep's folder or from a contribution table alone."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.yaml_core import read_yaml
from layersweep.orchestrator.statistics.contribution import interval_covers
from layersweep.orchestrator.statistics.contribution_table import FINAL, FIRST
from layersweep.workers.storage.files import read_bytes, read_table

STATISTICS = (
    *("contribution_sd", "contribution_untruncated", "contribution_note", "imprecise"),
    *("p_best", "p_top", "tied_with_best", *(f"final_{name}" for name in FINAL)),
)
"""Columns that a contribution table may lack while nothing is scored yet."""


@dataclass(frozen=True)
class Results:
    """A sweep's tables, whatever there is of them."""

    table: pd.DataFrame
    """Rows of contribution.parquet, with every column of the design; unknown values are missing."""
    steps: pd.DataFrame
    scores: pd.DataFrame
    spec: str
    """The text of sweep.yaml, or nothing."""

    @property
    def layers(self) -> pd.DataFrame:
        """Rows of single layers that have a score, by depth."""
        rows = self.table[(self.table["kind"] == "layer") & self.table["score"].notna()]
        return rows.sort_values("layer")

    @property
    def several(self) -> pd.DataFrame:
        """Rows of combined runs, which train or boost several layers, that have a score."""
        return self.table[~self.table["kind"].isin(["base", "full", "layer", "trial"]) & self.table["score"].notna()]

    def only(self, kind: str) -> pd.Series | None:
        """The row of base or full, once it has a score."""
        rows = self.table[(self.table["kind"] == kind) & self.table["score"].notna()]
        return rows.iloc[0] if len(rows) else None

    @property
    def has_contribution(self) -> bool:
        """Whether C is defined; else the scores themselves are what there is to show."""
        return bool(self.layers["contribution"].notna().any() or self.several["contribution"].notna().any())

    @property
    def model_layers(self) -> int:
        """Layers of the model, as far as the scanned ones tell."""
        rows = self.table[self.table["layer"].notna()]
        if not len(rows):
            return 0
        layer, depth = rows["layer"].astype(float), rows["depth"]
        inner = (depth > 0) & (layer > 0)
        return int(round((layer[inner] / depth[inner]).median())) + 1 if inner.any() else int(layer.max()) + 1

    def depth(self, selection: str) -> float:
        """0 for the model's first layer, 1 for its last; NaN for what is not one layer."""
        return self._depths.get(selection, np.nan)

    @cached_property
    def _depths(self) -> dict[str, float]:
        return dict(zip(self.table["selection"], self.table["depth"], strict=True))

    @property
    def covers(self) -> str:
        """The sentence on what the intervals speak about."""
        trained = self.table.loc[self.table["kind"] != "base", "seeds"].dropna()
        spec = read_yaml(self.spec) or {}
        return interval_covers(int(trained.max()) if len(trained) else 1, spec.get("evaluation", {}).get("seed_sd"))


def read(source: str) -> tuple[Results, str]:
    """The tables of `source`, a sweep's folder or a contribution table in parquet, and the folder for its report.

    A sweep's report goes into its folder, that of a `NAME.parquet` elsewhere into `NAME-report` beside it.

    Raises:
        SpecError: there is no such table, or it is none of ours.
    """
    source = str(source).rstrip("/")
    path = source if source.endswith(".parquet") else f"{source}/contribution.parquet"
    try:
        table = read_table(path)
    except FileNotFoundError as error:
        fix = "name a sweep's folder (OUTPUT/NAME) or a contribution table"
        raise SpecError([f"{path}: no such table; {fix}"]) from error
    except (ValueError, OSError) as error:
        raise SpecError([f"{path}: cannot be read as parquet: {error}"]) from error
    if absent := [name for name in ("selection", "kind", "score", "status") if name not in table]:
        raise SpecError([f"{path}: not a contribution table of layersweep: it lacks {', '.join(absent)}"])
    table = table.reindex(columns=[*FIRST, *STATISTICS, *(c for c in table if c not in {*FIRST, *STATISTICS})])
    for name in ("score", "contribution", "contribution_low", "contribution_high", "depth", "final_contribution"):
        table[name] = pd.to_numeric(table[name]).astype("float64")
    folder, _, name = path.rpartition("/")
    folder = folder or "."
    if name != "contribution.parquet":
        return Results(table, _none("steps"), _none("scores"), ""), path.removesuffix(".parquet") + "-report"
    spec = (read_bytes(f"{folder}/sweep.yaml") or b"").decode()
    return Results(table, _beside(folder, "steps"), _beside(folder, "scores"), spec), folder


def _beside(folder: str, name: str) -> pd.DataFrame:
    try:
        return read_table(f"{folder}/{name}.parquet")
    except FileNotFoundError:
        return _none(name)


def _none(name: str) -> pd.DataFrame:
    from layersweep.workers.actors.collector import SCORE_COLUMNS, STEP_COLUMNS

    return pd.DataFrame(columns=list({"steps": STEP_COLUMNS, "scores": SCORE_COLUMNS}[name]))
