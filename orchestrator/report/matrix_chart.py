"""What single-layer models solve, as a small matrix with the vote's figures."""

import math

import pandas as pd
from markupsafe import Markup

from layersweep.orchestrator.statistics.solved_prompts import SolvedOverlap

from .svg import Plot


def matrix_chart(square: pd.DataFrame, title: str, signed: bool = False) -> Markup:
    """A square table of numbers as shaded cells; `signed` ones run from -1 to 1, others from 0 to 1."""
    names = [str(name) for name in square.columns]
    short = [_short(name) for name in names]
    cell = 42 if len(names) <= 12 else max(9, 420 // len(names))
    left = min(10 + int(6.2 * max(map(len, short))), 150)
    top = 18 if left < 60 else left
    side = cell * len(names)
    plot = Plot((left + side + 4, top + side + 4), (0, len(names)), (len(names), 0), (left, 4, top, 4))
    every = -(-18 // cell)
    for i, name in enumerate(short):
        if i % every == 0:
            middle = cell * (i + 0.5)
            plot.add("text", name, cls="tick", x=left - 5, y=top + middle + 4, text_anchor="end")
            x, y = left + middle, top - 6
            slant = None if left < 60 else f"rotate(-50 {x:.1f} {y:.1f})"
            anchor = "middle" if left < 60 else "start"
            plot.add("text", name, cls="tick", x=x, y=y, text_anchor=anchor, transform=slant)
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            value = float(square.iat[i, j])
            _cell(plot, left + cell * j, top + cell * i, cell, value, f"{row} and {column}", signed)
    return plot.markup(title, "chart matrix", natural=True)


def _short(name: str) -> str:
    """For the margin; the cell's tip has the whole name."""
    name = name.removeprefix("layer-")
    return name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"


def _cell(plot: Plot, x: float, y: float, side: int, value: float, tip: str, signed: bool) -> None:
    known = math.isfinite(value)
    text = f"{value:.2f}".replace("-", "−") if known else "–"
    strength = min(abs(value), 1.0) * 100 if known else 0
    kind = "cell negative" if signed and known and value < 0 else "cell"
    plot.add(
        "rect", cls=kind, x=x + 0.5, y=y + 0.5, width=side - 1, height=side - 1, rx=2,
        style=f"--share: {strength:.0f}%", data_tip=f"{tip}\n{text}",
    )  # fmt: skip
    if side >= 30:
        shade = "number strong" if strength > 72 else "number"
        plot.add("text", text, cls=shade, x=x + side / 2, y=y + side / 2 + 4, text_anchor="middle")


def vote_rows(found: SolvedOverlap) -> list[tuple[str, str]]:
    """Figures beside the matrix: what one model gets right, and what they get right together."""
    best = found.members.idxmax()
    rows = [
        ("mean single-layer model", found.members.mean(), "right responses"),
        (f"best of them, {best}", found.members.max(), "right responses"),
        (f"majority vote of all {len(found.layers)}", found.majority, "right votes"),
        ("solved by any of them", found.solved["any"], "prompts"),
        ("solved by all of them", found.solved["all"], "prompts"),
    ]
    rows += [(f"solved by {name}", found.solved[name], "prompts") for name in ("base", "full") if name in found.solved]
    return [(name, f"{100 * value:.1f} % of {unit}" if unit == "prompts" else f"{100 * value:.1f} % {unit}")
            for name, value, unit in rows]  # fmt: skip


def mean_overlap(square: pd.DataFrame) -> float:
    """Over pairs of different models; NaN where no pair has one."""
    count = len(square)
    pairs = [square.iat[i, j] for i in range(count) for j in range(i)]
    known = [value for value in pairs if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
