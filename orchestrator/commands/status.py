"""`layersweep status` and `pull`: how a sweep stands, from anywhere."""

import json
import time
from pathlib import PurePath
from typing import Any, Literal

import pandas as pd
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from layersweep.orchestrator.execution.sweep_lock import describe_driver
from layersweep.orchestrator.remote.ray_jobs import Job
from layersweep.orchestrator.remote.sweep_view import SweepView
from layersweep.orchestrator.report.format import interval_text, number_text, wide_console
from layersweep.orchestrator.report.terminal_table import interval_title, without_contribution, without_driver
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import sweeps_of
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.orchestrator.spec.yaml_core import read_yaml
from layersweep.policies.selection import parse_run_name
from layersweep.workers.storage.files import write_atomically
from layersweep.workers.storage.table_schema import TableSchema
from layersweep.workers.storage.tables import CONTRIBUTION, PHASES, STEPS

FILES = ("sweep.yaml", "checkpoints/places.json", "contribution.parquet", "steps.parquet")
"""Files of a sweep that its status is in."""
SECONDS = 5.0
"""Seconds between two looks at a folder."""
SECONDS_BY_JOB = 30.0
"""Seconds between two looks through a cluster; each starts a small job there."""


def show_status(sweep: SweepView, watch: bool) -> bool:
    """Print how a sweep stands, or the sweeps of a spec with factors; with `watch`, until the end. False where some
    run, or the whole sweep, failed."""
    console = wide_console()
    if not watch:
        view, _, failed = look(sweep)
        console.print(view)
        return not failed
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            sweep.refresh()
            view, over, failed = look(sweep)
            live.update(view, refresh=True)
            if over:
                return not failed
            time.sleep(SECONDS_BY_JOB if sweep.cluster else SECONDS)


def pull(sweep: SweepView, output: str) -> list[str]:
    """Copy the contribution table as it is now to `output`; returns a line that says how complete it is.

    Of a spec with factors each sweep that has a table gets a file and a line: `contribution-<sweep>.parquet` where
    `output` is `contribution.parquet`.

    Raises:
        SpecError: there is none yet, or it is none of ours.
    """
    spec, content = sweep.read(["sweep.yaml", "contribution.parquet"])
    names = _sweeps_within(sweep, spec)
    path = PurePath(output)
    targets = [str(path.with_stem(f"{path.stem}-{name}")) for name in names] or [output]
    contents = sweep.read([f"{name}/contribution.parquet" for name in names]) or [content]
    found = [(target, content) for target, content in zip(targets, contents, strict=True) if content is not None]
    if not found:
        raise SpecError([f"{sweep.folder}: no contribution.parquet yet; it is there after the first steps"])
    lines = []
    for target, content in found:
        states = _parse(CONTRIBUTION, sweep, content)["status"].value_counts()
        write_atomically(target, lambda file, content=content: file.write(content))
        said = ", ".join(f"{n} {status}" for status, n in states.items())
        lines.append(f"{target}: {states.sum()} selections, {said}")
    return lines


def _parse(schema: TableSchema, sweep: SweepView, content: bytes) -> pd.DataFrame:
    """Return a table of the sweep.

    Raises:
        SpecError: it is not one.
    """
    try:
        return schema.parse(content)
    except ValueError as error:
        raise SpecError([f"{sweep.folder}/{schema.name}.parquet: {error}"]) from error


def _spec(sweep: SweepView, content: bytes | None) -> dict[str, Any]:
    """Return the sweep's own spec; what a sweep wrote has every field that is asked for here.

    Raises:
        SpecError: it is none.
    """
    try:
        spec = read_yaml((content or b"").decode())
        spec["name"], spec["training"]["steps"]
        return spec
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError([f"{sweep.folder}/sweep.yaml: this is not what a sweep wrote; restore it"]) from error


def _sweeps_within(sweep: SweepView, content: bytes | None) -> list[str]:
    """Return the names of the sweeps of a spec with factors; of any other spec none."""
    if content is None or not _spec(sweep, content).get("factors"):
        return []
    return [one.name for one in sweeps_of(parse_spec(read_yaml(content.decode())))]


def look(sweep: SweepView) -> tuple[Group, bool, bool]:
    """Look at a sweep, or at those of a spec with factors: what to show now, whether all is over, whether something
    failed."""
    files = sweep.read(list(FILES))
    names = _sweeps_within(sweep, files[0])
    lines = [f"sweep   {sweep.job.sweep if sweep.job else _spec(sweep, files[0])['name']} -> {sweep.folder}"]
    if sweep.job:
        lines += _job_lines(sweep.job, sweep.cluster.logs(sweep.job))
    if names:
        found = iter(sweep.read([f"{name}/{file}" for name in names for file in FILES]))
        parts = [_look_at(sweep, name, [f"sweep   {name}"], [next(found) for _ in FILES]) for name in names]
        states, failed = {state for _, state, _ in parts}, any(failed for _, _, failed in parts)
        over = states == {"over"}
        if not sweep.job and not over and "running" not in states:  # between two, or nobody's any more
            driver, over = describe_driver(sweep.folder)
            again = f"resume {sweep.folder} goes on" if states != {"not begun"} else "run begins with the first"
            if not over or "stopped" not in states:  # else each that is stopped tells so
                lines.append(f"driver  {driver}{f'; not all sweeps are done, layersweep {again}' if over else ''}")
        shown = Group(Text("\n".join(lines)), *(part for part, _, _ in parts))
    else:
        shown, state, failed = _look_at(sweep, "", lines, files)
        over = state != "running"
    if sweep.job:
        return shown, sweep.job.over, failed or sweep.job.status == "FAILED"
    return shown, over, failed


def _look_at(
    sweep: SweepView, name: str, lines: list[str], files: list[bytes | None]
) -> tuple[Group, Literal["not begun", "running", "stopped", "over"], bool]:
    """Look at one sweep: what to show, its state, and whether something failed.

    Args:
        name: of one of several; empty where it is the only one.
        lines: to show first.
        files: content of FILES.
    """
    spec, locations, *contents = files
    if name and spec is None:
        return Group(Text("\n".join([*lines, "        not begun"]))), "not begun", False
    locations = json.loads(locations or b"{}")
    table, steps = (
        None if content is None else _parse(schema, sweep, content)
        for schema, content in zip((CONTRIBUTION, STEPS), contents, strict=True)
    )
    over = table is not None and not (table["status"] == "running").any()
    failed, stopped = table is not None and bool((table["status"] == "failed").any()), False
    if sweep.job:
        over = sweep.job.over or bool(name) and over
    elif not over:
        driver, stopped = describe_driver(f"{sweep.folder}/{name}".rstrip("/"))
        ended = f"; it ended before the sweep did, layersweep resume {sweep.folder} goes on" if stopped else ""
        lines.append(f"driver  {driver}{ended}")
        if stopped and table is not None:
            table = without_driver(table)
    if over or stopped:
        locations = {}
    if engines := [f"{actor} on {where}" for actor, where in sorted(locations.items()) if actor.startswith("Engine-")]:
        lines.append(f"engines {'; '.join(engines)}")
    shown = [Text("\n".join(lines))]
    if table is not None:
        steps = STEPS.frame([]) if steps is None else steps  # a copied table alone
        shown.append(overview(table, steps, _spec(sweep, spec)["training"]["steps"], locations))
        if (over or stopped) and (said := without_contribution(table)):
            shown.append(Text(said))
    return Group(*shown), "stopped" if stopped else "over" if over else "running", failed


def _job_lines(job: Job, logs: str) -> list[str]:
    lasted = max(0.0, (job.ended or time.time()) - job.started)
    last = logs.strip().rpartition("\n")[2]
    message = f": {job.message.partition(', last available logs')[0]}" if job.status == "FAILED" else ""
    return [f"job     {job.id}, {job.status.lower()}, {lasted:.0f} s{message}", f"driver  {last}"]


def overview(table: pd.DataFrame, steps: pd.DataFrame, total: int, locations: dict[str, str]) -> Table:
    """Return a row per selection: its step and last reward (the mean of its seeds), tokens per second, score,
    contribution.

    Args:
        table, steps: the content of contribution.parquet and steps.parquet.
        total: training steps of a run.
        locations: host and GPUs by run; a column where there are any.
    """
    latest = _latest(steps)
    shown = Table("selection", "step", "reward", "tokens/s", "score", "contribution", interval_title(table), "status")
    where = {row: _hosts(row, locations) for row in table["selection"]}
    if any(where.values()):
        shown.add_column("on")
    for row in table.itertuples():
        now = latest.get(row.selection, {})
        shown.add_row(
            row.selection, f"{now['step'] + 1:.0f}/{total}" if now else "", number_text(now.get("reward_mean")),
            f"{now['rate']:.0f}" if now else "", number_text(row.score), number_text(row.contribution),
            interval_text(row.contribution_low, row.contribution_high),
            f"{row.status}: {row.reason}" if row.status == "failed" else row.status,
            *([where[row.selection]] if any(where.values()) else []),
        )  # fmt: skip
    return shown


def _hosts(selection: str, locations: dict[str, str]) -> str:
    """Host and GPUs of all its seeds' trainers."""
    own = (where for run, where in locations.items() if (parse_run_name(run) or ("",))[0] == selection)
    return "; ".join(dict.fromkeys(own))


def _latest(steps: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Latest figures by selection: the slowest seed's step, mean reward, and the sum of all seeds' last rates."""
    last = steps.sort_values("step").groupby(["selection", "seed"]).tail(1)
    last = last.assign(rate=last["tokens"] / last[[f"{phase}_seconds" for phase in PHASES]].sum(axis=1))
    by = last.groupby("selection").agg(step=("step", "min"), reward_mean=("reward_mean", "mean"), rate=("rate", "sum"))
    return by.to_dict("index")
