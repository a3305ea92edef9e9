"""Learning curves and training health: one line per run, coloured by depth, the full run in ink."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from markupsafe import Markup

from layersweep.orchestrator.statistics.contribution import kind_and_layer

from .results import Results
from .svg import Panel, Plot, depth_colour, span, ticks

POINTS = 120
"""Longer curves are averaged down to about this many points."""
HEALTH = {
    "no_signal_fraction": ("Groups without signal", "all responses of a prompt scored alike: nothing to learn from"),
    "entropy": ("Entropy", "nats a token; a fall to 0 is a collapse of exploration"),
    "clip_fraction": ("Clip fraction", "tokens whose ratio left the trust region"),
    "logprob_mismatch": ("Engine and trainer mismatch", "mean difference of their log-probabilities, in nats"),
    "kl": ("KL to the base", "nats a token (k3)"),
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
    """Per selection, trials of a learning rate apart, the mean over seeds by step (counted from 1), averaged down where
    long; full last, on top."""
    steps = results.steps.dropna(subset=[column]) if column in results.steps else results.steps.iloc[:0]
    means = steps.groupby(["selection", "step"])[column].mean().astype(float)
    found = {}
    for selection in means.index.unique("selection"):
        if kind_and_layer(str(selection))[0] == "trial":
            continue
        curve = means[selection]
        curve.index = curve.index.astype(int) + 1
        every = -(-len(curve) // POINTS)
        if every > 1:
            block = np.arange(len(curve)) // every
            curve = pd.Series(curve.groupby(block).mean().values, curve.index.to_series().groupby(block).mean().values)
        found[str(selection)] = curve
    return {name: found[name] for name in sorted(found, key=lambda name: (name == "full", name))}


def curve_chart(results: Results, column: str, title: str, size: tuple[int, int]) -> Markup | None:
    """The chart of one column; None where no run has it."""
    lines = curves(results, column)
    if not lines:
        return None
    last = max(curve.index.max() for curve in lines.values())
    values = [value for curve in lines.values() for value in curve]
    floor = [0.0] if min(values) >= 0 and min(values) < 0.6 * max(values) else []
    many = " many" if len(lines) > 12 else ""
    plot = Plot(size, (1, max(last, 2)), span(values, include=floor, margin=0.04), (44, 10, 10, 20))
    plot.y_axis(4)
    plot.x_axis(sorted({v for v in ticks(1, max(last, 2), 5) if v == int(v)} | {1}))
    for name, curve in lines.items():
        plot.open(cls=f"run {kind(name)}", data_run=name, style=colour(results, name))
        plot.line(zip(curve.index, curve, strict=True))
        plot.close()
    return plot.markup(title, f"chart curves{many}")


def kind(selection: str) -> str:
    """The class of a run's line."""
    return selection if selection in ("full", "base") else "layer" if selection.startswith("layer-") else "several"


def colour(results: Results, selection: str) -> str | None:
    """A layer's own colour; the others' are the style sheet's."""
    depth = results.depth(selection)
    return f"--c: {depth_colour(depth)}" if np.isfinite(depth) else None


def health_charts(results: Results, columns: Iterable[str] = HEALTH) -> list[Panel]:
    """Panels of training health: a title, what it means, and the chart, or the value where it never changed."""
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
