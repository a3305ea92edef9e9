"""Learning curves and training health: one line per run, coloured by depth, the full run in ink."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from .chart import Blend, Chart, Panel, axis_range, depth_colour, whole_ticks
from .results import Results

POINTS = 120
"""Longer curves are averaged down to about this many points."""
HEALTH = {
    "no_signal_fraction": ("Groups without signal", "all responses of a prompt scored alike: nothing to learn from"),
    "entropy": ("Entropy", "nats a token trained on; a fall to 0 is a collapse of exploration"),
    "clip_fraction": ("Clip fraction", "tokens whose ratio left the trust region"),
    "logprob_mismatch": ("Engine and trainer mismatch", "mean difference of their log-probabilities, in nats"),
    "kl": ("KL to the base", "nats a token (k3); without a KL term on samples, at every eighth step"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "update_norm": ("Distance from the base", "L2 norm of the weights' change so far"),
    "response_tokens": ("Response length", "tokens, in training"),
    "truncated_fraction": ("Truncated responses", "cut at the token limit, in training"),
    "format_fraction": ("Format rate", "answers that could be parsed, in training"),
    "loss": ("Loss", "of the policy gradient; its size says little"),
    "success_rate": ("Success rate", "of episodes"),
    "episode_length": ("Episode length", "turns"),
    "invalid_action_rate": ("Invalid actions", "share of turns"),
    "step_groups_larger_than_one": (
        "Shared states",
        "share of step groups with more than one row",
    ),
    "lost_episodes": ("Lost episodes", "environments that failed, retried once"),
}
"""Columns of steps.parquet that get a panel, with a title and what it means."""


def curves(results: Results, column: str) -> dict[str, pd.Series]:
    """Return the mean over seeds by step (counted from 1), of each selection but controls and trials.

    Long ones are averaged down; full comes last, on top.
    """
    steps = results.steps.dropna(subset=[column]) if column in results.steps else results.steps.iloc[:0]
    means = steps.groupby(["selection", "step"])[column].mean().astype(float)
    found = {}
    for selection in means.index.unique("selection"):
        if results.kind(selection) in ("control", "trial"):
            continue
        curve = means[selection]
        curve.index = curve.index.astype(int) + 1
        every = -(-len(curve) // POINTS)
        if every > 1:
            block = np.arange(len(curve)) // every
            curve = pd.Series(curve.groupby(block).mean().values, curve.index.to_series().groupby(block).mean().values)
        found[selection] = curve
    return {name: found[name] for name in sorted(found, key=lambda name: (name == "full", name))}


def curve_chart(results: Results, column: str, title: str, size: tuple[int, int]) -> Chart | None:
    """Return the chart of one column; None where no run has it."""
    lines = curves(results, column)
    if not lines:
        return None
    last = max(2, *(curve.index.max() for curve in lines.values()))
    values = [value for curve in lines.values() for value in curve]
    floor = [0.0] if min(values) >= 0 and min(values) < 0.6 * max(values) else []
    y = axis_range(values, include=floor, margin=0.04)
    chart = Chart(title, size, (1, last), y, (44, 10, 10, 20), "chart curves")
    chart.y_axis(4)
    chart.x_axis(sorted({*whole_ticks(1, last, 5), 1}))
    many = " many" if len(lines) > 12 else ""
    for name, curve in lines.items():
        drawn_as = line_class(results, name)
        with chart.group(f"run {drawn_as}", line_colour(results, name), data_run=name):
            chart.line(zip(curve.index, curve, strict=True), f"line {drawn_as}{many}")
    return chart


def line_class(results: Results, selection: str) -> str:
    """Return the CSS class of a run's line: full, layer, or several for combined runs."""
    kind = results.kind(selection)
    return "several" if kind == "layers" else kind


def line_colour(results: Results, selection: str) -> Blend | None:
    """Return a layer's own colour; the others' are the style sheet's."""
    depth = results.depth(selection)
    return depth_colour(depth) if np.isfinite(depth) else None


def health_charts(results: Results, columns: Iterable[str] = HEALTH) -> list[Panel]:
    """Return panels of training health: a title, what it means, and the chart, or the value where it never changed."""
    panels = []
    for column in columns:
        if column not in results.steps:
            continue
        values = pd.to_numeric(results.steps[column]).dropna()
        if not len(values):
            continue
        title, meaning = HEALTH[column]
        constant = f"{values.iloc[0]:.3g} in every step of every run" if values.nunique() == 1 else None
        chart = None if constant else curve_chart(results, column, title, (344, 180))
        panels.append(Panel(title, meaning, chart, constant))
    return panels
