"""Costs by run: wall seconds and CPU seconds per phase, bytes pushed, tokens."""

import numpy as np
import pandas as pd

from layersweep.orchestrator.report.format import size
from layersweep.workers.storage.tables import PHASES

from .chart import Chart, Panel, axis_number, ticks
from .results import Results

CPU = {"generate_cpu": "rollout", "reward_cpu": "reward", "update_cpu": "update"}
"""CPU time by the columns `<name>_seconds` of steps.parquet, with the phase whose colour it takes."""
ROW = 19


def cost_charts(results: Results) -> list[Panel]:
    """Three panels of horizontal bars, and their legends; none before the first step."""
    steps = results.steps
    if not len(steps):
        return []
    order = [name for name in results.table["selection"] if name in set(steps["selection"])]
    seeds = steps.groupby("selection")["seed"].nunique()
    totals = steps.groupby("selection")[[f"{p}_seconds" for p in (*PHASES, *CPU)] + ["pushed_bytes"]].sum()
    per_run = totals.div(seeds, axis=0).loc[order].astype(float)
    wall = per_run[[f"{phase}_seconds" for phase in PHASES]].set_axis(list(PHASES), axis=1)
    cpu = per_run[[f"{phase}_seconds" for phase in CPU]].set_axis(list(CPU.values()), axis=1)
    count = steps.groupby("selection")["step"].nunique().loc[order]
    pushed = (per_run["pushed_bytes"] / count / 2**20).to_frame("sync")
    seconds, mib = "wall seconds by phase", "MiB pushed to the engine after each step"
    return [
        Panel("Wall seconds", "of a run, its phases one after the other", _bars(wall, seconds, "s"), phases=list(wall)),
        Panel(
            "CPU seconds",
            "of a run, over all processes that serve it",
            _bars(cpu, "CPU seconds", "s"),
            phases=list(cpu),
        ),
        Panel("Pushed per step", "MiB from trainer to engine", _bars(pushed, mib, "MiB")),
    ]


def totals(results: Results) -> list[tuple[str, str]]:
    """Return sums over all runs, as names and values."""
    steps, full = results.steps, results.only("full")
    if not len(steps):
        return []
    pushed = float(steps["pushed_bytes"].sum())
    facts = [
        ("training steps", axis_number(float(len(steps)))),
        ("tokens generated in training", axis_number(float(steps["tokens"].sum()))),
        ("responses scored", axis_number(float(len(results.scores)))),
        ("pushed to engines", size(pushed)),
    ]
    whole = steps.loc[steps["selection"] == "full", "pushed_bytes"].mean()
    if full is not None and pd.notna(whole) and whole > 0:
        facts.append(("had every push been a whole model", size(float(whole) * len(steps))))
    return facts


def _bars(rows: pd.DataFrame, title: str, unit: str) -> Chart:
    """Draw one stacked bar per run; columns are phases. What is no amount (infinite, negative) is left out."""
    rows = rows.where(np.isfinite(rows), 0.0).clip(lower=0.0)
    longest = float(rows.sum(axis=1).max()) or 1.0
    left = min(14 + 6 * max(len(name) for name in rows.index), 130)
    chart = Chart(title, (344, ROW * len(rows) + 26), (0, longest * 1.02), (0, 1), (left, 12, 2, 22))
    bottom = 2 + ROW * len(rows)
    for value in ticks(0, longest, 4):
        x = chart.x(value)
        chart.add("line", "grid", x1=x, x2=x, y1=2, y2=bottom)
        chart.add("text", "tick", axis_number(value), x=x, y=bottom + 15, text_anchor="middle")
    for at, (name, row) in enumerate(rows.iterrows()):
        y, begun = 2 + ROW * at, 0.0
        chart.add("text", "tick", name, x=left - 6, y=y + 13, text_anchor="end")
        for phase, value in row.items():
            if value > 0:
                start, end = chart.x(begun), chart.x(begun + value)
                chart.add(
                    "rect", f"phase {phase}", x=start, y=y + 3, width=end - start, height=ROW - 6,
                    data_tip=f"{name}\n{phase} {value:.3g} {unit}",
                )  # fmt: skip
                begun += value
    return chart
