"""`layersweep rescore`: the kept responses scored once more, by the tasks as they are now, without a model.

The new tables go into `<sweep>/rescored/`, which `report` and `compare` take for a sweep; the old ones stay. Prompts
and right answers are those that the sweep had; the code that judges is today's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from rich.table import Table

from layersweep.orchestrator.report.format import number_text, wide_console
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.score_arrays import GREEDY
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.policies.selection import parse_run_name
from layersweep.rollout.types import Response, reward_columns, verdict_columns
from layersweep.workers.storage.files import write_atomically
from layersweep.workers.storage.responses import TRAIN, KeptFile, kept_files, kept_prompts
from layersweep.workers.storage.run_store import RunStore, runs_of
from layersweep.workers.storage.table_schema import TableSchema
from layersweep.workers.storage.tables import BY_SUITE, CONTRIBUTION, SCORES, STEPS

FOLDER = "rescored"
KEY = ["selection", "seed", "step", "suite", "split", "prompt", "sample"]
JUDGED = list(verdict_columns([]))
CONSTANT = ["sweep", "model", "algorithm", "task", "learning_rate_policy", "model_layers"]


@dataclass(frozen=True)
class Rescored:
    """The outcome of scoring once more."""

    folder: str
    before: pd.DataFrame
    after: pd.DataFrame
    """The contribution tables."""
    responses: int
    changed: int
    """Responses that were scored, and those of them whose score is another one now."""
    left_out: int
    """Rows of scores.parquet whose responses were not kept: they are in none of the new tables."""


def rescore(folder: str, overrides: Mapping[str, Any] | None = None) -> Rescored:
    """Score a sweep's kept evaluations once more and write the tables that follow to `<folder>/rescored`.

    Args:
        folder: the sweep's folder or URI.
        overrides: fields of `task` and of suites' tasks by dotted path, such as `{"task.cpu_seconds": 5}`.

    Raises:
        SpecError: there is no sweep, no kept response, or a task that cannot be built; environments, which only their
            episodes can score; overrides of anything else.
    """
    folder = folder.rstrip("/")
    spec = _spec(folder, overrides or {})
    before, scores, steps = (_table(folder, schema) for schema in (CONTRIBUTION, SCORES, STEPS))
    graders = _graders(spec)
    files = [file for file in kept_files(folder) if file.split != TRAIN]
    if not files:
        raise SpecError([f"{folder}: no evaluated responses are kept there; `responses` in the spec says which are"])
    judged = pd.concat([_judged(folder, file, graders) for file in files], ignore_index=True)
    decided = [
        name for name in scores if name in JUDGED or name not in SCORES.types
    ]  # named rewards have no line there
    known = scores.drop(columns=decided).merge(judged, on=KEY, how="left", indicator=True, validate="one_to_one")
    there = (known.pop("_merge") == "both").to_numpy()
    after_scores = SCORES.frame(known[there].reset_index(drop=True))
    runs = _runs(folder, before)
    constants = {name: before[name].iloc[0] for name in CONSTANT}
    seed_sd = spec.evaluation.seed_sd
    after = sweep_table(constants, runs, steps, after_scores, seed_sd=seed_sd)
    by_suite = suite_table(spec.name, runs, after_scores, seed_sd=seed_sd)
    target = f"{folder}/{FOLDER}"
    for schema, frame in ((STEPS, steps), (SCORES, after_scores), (BY_SUITE, by_suite), (CONTRIBUTION, after)):
        write_atomically(f"{target}/{schema.name}.parquet", partial(schema.write, frame))
    resolved = write_yaml(spec.model_dump(mode="json")).encode()
    write_atomically(f"{target}/sweep.yaml", lambda file: file.write(resolved))
    changed = int((scores.loc[there, "score"].to_numpy() != after_scores["score"].to_numpy()).sum())
    return Rescored(target, before, after, len(after_scores), changed, int((~there).sum()))


def show_rescored(found: Rescored) -> None:
    """Print scores and contributions before and after."""
    shown = Table("selection", "score", "rescored", "contribution", "rescored")
    after = found.after.set_index("selection")
    for row in found.before.itertuples():
        new = after.loc[row.selection]
        shown.add_row(
            row.selection, number_text(row.score), number_text(new["score"]), number_text(row.contribution),
            number_text(new["contribution"]),
        )  # fmt: skip
    console = wide_console()
    console.print(shown)
    console.print(f"{found.responses:,} responses scored once more, {found.changed:,} with another score")
    if found.left_out:
        console.print(
            f"left out are {found.left_out:,} scores whose responses were not kept (`responses: all` keeps every one)"
        )
    console.print(f"tables: {found.folder}")


def _spec(folder: str, overrides: Mapping[str, Any]) -> SweepSpec:
    old, new = (load_spec(f"{folder}/sweep.yaml", given) for given in ({}, overrides))
    if _without_tasks(old) != _without_tasks(new):
        raise SpecError(["rescore changes how responses are judged: give fields of `task` and of suites' `task` alone"])
    return new


def _without_tasks(spec: SweepSpec) -> dict[str, Any]:
    plain = spec.model_dump(mode="json", exclude={"task"})
    for suite in plain["evaluation"]["suites"]:
        suite.pop("task")
    return plain


def _table(folder: str, schema: TableSchema) -> pd.DataFrame:
    try:
        return schema.read(f"{folder}/{schema.name}.parquet")
    except (OSError, ValueError) as error:
        raise SpecError([f"{folder}: {error}"]) from error


def _graders(spec: SweepSpec) -> dict[str, Any]:
    """Return the task of each suite, and what is wrong with those that cannot be built."""
    problems, built = [], {}
    for section, config in [("task", spec.task)] + [
        (suite.name, suite.task) for suite in spec.evaluation.suites if suite.task is not None
    ]:
        if getattr(config, "multi_turn", False):
            problems.append(f"{section}: an environment scores episodes while they are played; they cannot be rescored")
            continue
        try:
            built[section] = config.build()
        except (ValueError, OSError) as error:
            problems.append(f"{section}: {error}")
    if problems:
        raise SpecError(problems)
    return {suite.name: built[suite.name if suite.task else "task"] for suite in spec.evaluation.suites}


def _judged(folder: str, file: KeptFile, graders: dict[str, Any]) -> pd.DataFrame:
    """Return columns KEY and those that the task decides of one evaluation's responses."""
    try:
        kept = file.read()
        prompts = kept_prompts(folder, file.split, file.suite)
    except (OSError, ValueError) as error:
        raise SpecError([f"{file.target}: {error}"]) from error
    if prompts is None or (absent := set(kept["prompt"]) - prompts.keys()):
        lacking = "its prompts were" if prompts is None else f"prompt {min(absent)} was"
        raise SpecError([f"{file.target}: {lacking} not kept; the responses can be read, not scored once more"])
    asked = [prompts[name] for name in kept["prompt"]]
    responses = [
        Response(text, not cut) for text, cut in zip(kept["response"], kept["truncated"].to_list(), strict=True)
    ]
    given = graders[file.suite.removesuffix(GREEDY)].score(asked, responses)
    selection, seed = parse_run_name(file.run)
    return pd.DataFrame(
        {
            "selection": selection, "seed": seed, "step": file.step, "suite": file.suite, "split": file.split,
            "prompt": kept["prompt"], "sample": kept["sample"], **verdict_columns(given),
            **reward_columns(given),
        }
    )  # fmt: skip


def _runs(folder: str, table: pd.DataFrame) -> pd.DataFrame:
    """Read what is known of the runs, as the collector had it, in the order of the table."""
    order = {name: place for place, name in enumerate(table["selection"])}
    found = [RunStore(folder, name).metadata() for name in runs_of(folder)]
    found = [run for run in found if run.get("selection") in order]
    if lacking := order.keys() - {run["selection"] for run in found}:
        raise SpecError([f"{folder}/checkpoints: nothing is known there of {min(lacking)}; rescore needs its run.json"])
    return pd.DataFrame(sorted(found, key=lambda run: (order[run["selection"]], run["seed"])))
