"""Tables that a report is made of, read from a sweep's folder or from a contribution table alone."""

from dataclasses import dataclass, field
from functools import cached_property, partial

import pandas as pd

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.yaml_core import read_yaml
from layersweep.orchestrator.statistics.base_success import base_success_table
from layersweep.orchestrator.statistics.contribution_table import table_problem
from layersweep.orchestrator.statistics.score_arrays import responses_of_split
from layersweep.orchestrator.statistics.seeds import interval_covers, one_run_each, seeds_trained
from layersweep.workers.storage.files import read_bytes
from layersweep.workers.storage.table_schema import TableSchema
from layersweep.workers.storage.tables import (
    BY_BASE_SUCCESS,
    COMPOSITION,
    CONTRIBUTION,
    DISSECTION,
    PROBE,
    SCORES,
    STEPS,
)


@dataclass(frozen=True)
class Results:
    """A sweep's tables, whatever there is of them."""

    table: pd.DataFrame
    """Rows of contribution.parquet, with every column of the design; unknown values are missing."""
    steps: pd.DataFrame
    scores: pd.DataFrame
    spec: str
    """The text of sweep.yaml, or nothing."""
    dissection: pd.DataFrame = field(default_factory=partial(DISSECTION.frame, []))
    """Rows of dissection.parquet, where the sweep was dissected."""
    composition: pd.DataFrame = field(default_factory=partial(COMPOSITION.frame, []))
    """Rows of composition.parquet."""
    probe: pd.DataFrame = field(default_factory=partial(PROBE.frame, []))
    """Rows of probe.parquet, where the base was probed."""

    @property
    def layers(self) -> pd.DataFrame:
        """Rows of single layers that have a score, by depth."""
        rows = self.table[(self.table["kind"] == "layer") & self.table["score"].notna()]
        return rows.sort_values("layer")

    @property
    def several(self) -> pd.DataFrame:
        """Rows of combined runs, which train or boost several layers, that have a score."""
        other = ["base", "full", "layer", "control", "trial"]
        return self.table[~self.table["kind"].isin(other) & self.table["score"].notna()]

    def only(self, kind: str) -> pd.Series | None:
        """Return the row of base or full, once it has a score."""
        rows = self.table[(self.table["kind"] == kind) & self.table["score"].notna()]
        return rows.iloc[0] if len(rows) else None

    @property
    def has_contribution(self) -> bool:
        """Whether C is defined; else the scores themselves are what there is to show."""
        return bool(self.layers["contribution"].notna().any() or self.several["contribution"].notna().any())

    @property
    def model_layers(self) -> int:
        """Layers of the model; in an old table that tells nothing of it, one more than the last layer scanned."""
        known = pd.concat([self.table["model_layers"], self.table["layer"] + 1]).dropna()
        return int(known.max()) if len(known) else 0

    def kind(self, selection: str) -> str:
        """Kind of a selection: one of statistics.score_arrays.KINDS."""
        return self._rows[selection]["kind"]

    def depth(self, selection: str) -> float:
        """0 for the model's first layer, 1 for its last; NaN for what is not one layer."""
        return self._rows[selection]["depth"]

    def label(self, selection: str) -> str:
        """Return a short name: the number of a single layer, else the selection."""
        row = self._rows[selection]
        return f"{row['layer']:02d}" if row["kind"] == "layer" else selection

    @cached_property
    def _rows(self) -> dict[str, dict]:
        return {row["selection"]: row for row in self.table.to_dict("records")}

    @property
    def seeds(self) -> int:
        """Training runs of a selection, the most there are."""
        return seeds_trained(self.table)

    @property
    def seed_sd(self) -> float | None:
        """Standard deviation of S between RL seeds that the spec gives."""
        return (read_yaml(self.spec) or {}).get("evaluation", {}).get("seed_sd")

    @cached_property
    def by_base_success(self) -> pd.DataFrame:
        """Rows of contribution_by_base_success.parquet, from the scores; none without them."""
        if not len(self.scores):
            return BY_BASE_SUCCESS.frame([])
        name = self.table["sweep"].iloc[0]
        return base_success_table(name, self.table, self.scores, seed_sd=self.seed_sd)

    @property
    def covers(self) -> str:
        """The sentence on what the intervals speak about."""
        return interval_covers(self.seeds, self.seed_sd)

    @property
    def one_run_each(self) -> str:
        """Words after an interval that knows no other seed; empty with several seeds."""
        return f", {said}" if (said := one_run_each(self.seeds)) else ""


def read(source: str) -> tuple[Results, str]:
    """Return the tables of `source`, a sweep's folder or a contribution table in parquet, and the folder for its
    report.

    A sweep's report goes into its folder, that of a `NAME.parquet` elsewhere into `NAME-report` beside it.

    Raises:
        SpecError: there is no such table, or it is none of ours.
    """
    source = str(source).rstrip("/")
    path = source if source.endswith(".parquet") else f"{source}/contribution.parquet"
    table = _read(path, CONTRIBUTION)
    if table is None:
        fix = "name a sweep's folder (OUTPUT/NAME) or a contribution table"
        raise SpecError([f"{path}: no such table; {fix}"])
    if problem := table_problem(table):
        raise SpecError([f"{path}: {problem}"])
    folder, _, name = path.rpartition("/")
    folder = folder or "."
    if name != "contribution.parquet":
        return Results(table, STEPS.frame([]), SCORES.frame([]), ""), path.removesuffix(".parquet") + "-report"
    steps, scores = (_read(f"{folder}/{schema.name}.parquet", schema) for schema in (STEPS, SCORES))
    steps, scores = (STEPS.frame([]) if steps is None else steps), (SCORES.frame([]) if scores is None else scores)
    for name, rows in (("steps", steps), ("scores", scores)):
        if strange := sorted(set(rows["selection"]) - set(table["selection"])):
            raise SpecError([f"{folder}/{name}.parquet: {path} has no row of its selection {strange[0]}"])
    try:
        for split in ("selection", "final"):
            responses_of_split(scores, split)
    except ValueError as error:
        raise SpecError([f"{folder}/scores.parquet: {error}"]) from error
    spec = (read_bytes(f"{folder}/sweep.yaml") or b"").decode(errors="replace")
    further = (DISSECTION, COMPOSITION, PROBE)
    made = {schema.name: _read(f"{folder}/{schema.name}.parquet", schema) for schema in further}
    made = {name: frame for name, frame in made.items() if frame is not None}
    return Results(table, steps, scores, spec, **made), folder


def _read(path: str, schema: TableSchema) -> pd.DataFrame | None:
    """Return a table; None where there is no such file."""
    try:
        return schema.read(path)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise SpecError([f"{path}: {error}"]) from error
