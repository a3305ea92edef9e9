"""compare.html and compare.png: many profiles along relative depth, their agreement as a matrix."""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pandas as pd
from markupsafe import Markup

from layersweep.orchestrator.statistics.layer_profile import Profile
from layersweep.orchestrator.statistics.profile_agreement import FEWEST_LAYERS, matrix
from layersweep.workers.storage.files import write_atomically

from .comparison_text import explanation, interval, number, shared
from .matrix_chart import matrix_chart
from .page import NARROW, WIDE, environment, now
from .svg import Plot, span

COLOURS = ("#1f5fd1", "#c2500c", "#2f9173", "#a1308f", "#8a6d0b", "#4a2a8a", "#178a8f", "#b42318")
"""Of the first tables; more than these are told apart by pointing."""


def write_comparison(
    folder: str, profiles: Sequence[Profile], pairs: pd.DataFrame, shares: pd.DataFrame, top: int
) -> list[str]:
    """Write both files into `folder`; returns their paths."""
    page = render(profiles, pairs, shares, top).encode()
    written = {"compare.html": lambda file: file.write(page), "compare.png": lambda file: _image(profiles, file)}
    for name, write in written.items():
        write_atomically(f"{folder.rstrip('/')}/{name}", write)
    return [f"{folder.rstrip('/')}/{name}" for name in written]


def render(profiles: Sequence[Profile], pairs: pd.DataFrame, shares: pd.DataFrame, top: int) -> str:
    """The page."""
    squares = [
        (title, matrix_chart(matrix(pairs, column), title, signed=True))
        for column, title in (("rho", "Noise-corrected Spearman"), ("spearman", "Observed Spearman"))
        if pairs[column].notna().any()
    ]
    return environment().get_template("compare.html.j2").render(
        profiles=[(profile.name, _style(i)) for i, profile in enumerate(profiles)],
        few=[profile.name for profile in profiles if len(profile.depth) < FEWEST_LAYERS],
        chart=(_overlay(profiles, WIDE, 330), _overlay(profiles, NARROW, 260)),
        squares=squares,
        pairs=[
            (row.a, row.b, row.layers, number(row.spearman), number(row.rho), interval(row), shared(row), row.verdict)
            for row in pairs.itertuples()
        ],
        shares=[
            (row.table, number(row.top_share), number(row.centre_of_mass), number(row.gini))
            for row in shares.itertuples()
        ],
        top=top,
        explanation=explanation(pairs, profiles),
        mixed=len({profile.is_contribution for profile in profiles}) > 1,
        written=now(),
    )  # fmt: skip


def _style(at: int) -> str:
    return f"--c: {COLOURS[at % len(COLOURS)]}"


def _overlay(profiles: Sequence[Profile], width: int, height: int) -> Markup:
    """All profiles, in units of their own standard deviation around their mean: what a rank correlation sees."""
    drawn = _drawn(profiles)
    many = " many" if len(profiles) > len(COLOURS) else ""
    values = np.concatenate([[0.0], *(values for _, _, values in drawn)])
    plot = Plot((width, height), (0, 1), span(values), (38, 12, 12, 36))
    plot.y_axis(5)
    plot.x_axis((0, 0.25, 0.5, 0.75, 1), "relative depth")
    for i, profile, values in drawn:
        plot.open(cls="run", data_run=profile.name, style=_style(i))
        plot.line(zip(profile.depth, values, strict=True))
        plot.close()
    return plot.markup("profiles along relative depth", f"chart curves{many}")


def _drawn(profiles: Sequence[Profile]) -> list[tuple[int, Profile, np.ndarray]]:
    """Place, profile and standardised values of those with layers enough for a shape; of two, one is always at -1."""
    centred = [profile.contribution - profile.contribution.mean() for profile in profiles]
    return [
        (i, profiles[i], values / (values.std() or 1.0))
        for i, values in enumerate(centred)
        if len(values) >= FEWEST_LAYERS
    ]


def _image(profiles: Sequence[Profile], file: BinaryIO) -> None:
    from .png import STYLE, plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        for i, profile, values in _drawn(profiles):
            axes.plot(
                profile.depth,
                values,
                "o-",
                ms=3,
                lw=1.3,
                color=COLOURS[i % len(COLOURS)],
                label=profile.name,
            )
        axes.set(xlabel="relative depth", ylabel="contribution, standardised", title="profiles")
        if 0 < len(axes.lines) <= len(COLOURS):
            axes.legend(fontsize=9)
        figure.savefig(file, format="png")
        plt.close(figure)
