"""compare.html and compare.png: many profiles along relative depth, their agreement as a matrix."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics.layer_profile import Profile
from layersweep.orchestrator.statistics.profile_agreement import FEWEST_LAYERS, matrix
from layersweep.orchestrator.statistics.profile_variance import shares_text, variance_shares
from layersweep.workers.storage.files import write_atomically

from .chart import Chart, axis_range
from .comparison_text import explanation, interval, number, shared
from .matrix_chart import matrix_chart
from .page import NARROW, WIDE, environment, now
from .png import Image, LegendEntry, write_png
from .suite_comparison import HEADS

COLOURS = ("#1f5fd1", "#c2500c", "#2f9173", "#a1308f", "#8a6d0b", "#4a2a8a", "#178a8f", "#b42318")
"""Colours of the first tables; more than these are told apart by pointing."""


def write_comparison(
    folder: str, profiles: Sequence[Profile], pairs: pd.DataFrame, shares: pd.DataFrame, top: int,
    suites: Sequence[tuple[str, ...]] = (), varied: pd.DataFrame | None = None,
) -> list[str]:  # fmt: skip
    """Write both files into `folder`; returns their paths."""
    page, image = render(profiles, pairs, shares, top, suites, varied).encode(), _image(profiles)
    written = {
        "compare.html": lambda file: file.write(page),
        "compare.png": lambda file: write_png([image], file),
    }
    for name, write in written.items():
        write_atomically(f"{folder.rstrip('/')}/{name}", write)
    return [f"{folder.rstrip('/')}/{name}" for name in written]


def render(
    profiles: Sequence[Profile], pairs: pd.DataFrame, shares: pd.DataFrame, top: int,
    suites: Sequence[tuple[str, ...]] = (), varied: pd.DataFrame | None = None,
) -> str:  # fmt: skip
    """Return the page; `suites` are the rows of `suite_comparison`, `varied` those of `variance_shares`."""
    varied = variance_shares(profiles) if varied is None else varied
    squares = [
        (title, matrix_chart(matrix(pairs, column), title, signed=True))
        for column, title in (("rho", "Noise-corrected Spearman"), ("spearman", "Observed Spearman"))
        if pairs[column].notna().any()
    ]
    return environment().get_template("compare.html.j2").render(
        profiles=[(profile.name, f"--c: {_colour(i)}") for i, profile in enumerate(profiles)],
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
        suite_heads=HEADS,
        suites=suites,
        varied=[(row.component, number(row.share), f"{row.low:.2f} .. {row.high:.2f}") for row in varied.itertuples()],
        varied_text=shares_text(varied, min(profile.seeds for profile in profiles)),
        explanation=explanation(pairs, profiles),
        mixed=len({profile.is_contribution for profile in profiles}) > 1,
        written=now(),
    )  # fmt: skip


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]


def _overlay(profiles: Sequence[Profile], width: int, height: int) -> Chart:
    """Return all profiles, in units of their own standard deviation around their mean: what a rank correlation sees."""
    drawn = _drawn(profiles)
    many = " many" if len(profiles) > len(COLOURS) else ""
    values = np.concatenate([[0.0], *(values for _, _, values in drawn)])
    title = "profiles along relative depth"
    chart = Chart(title, (width, height), (0, 1), axis_range(values), (38, 12, 12, 36), "chart curves")
    chart.y_axis(5)
    chart.x_axis((0, 0.25, 0.5, 0.75, 1), "relative depth")
    for i, profile, values in drawn:
        with chart.group("run", _colour(i), data_run=profile.name):
            chart.line(zip(profile.depth, values, strict=True), f"line{many}")
    return chart


def _drawn(profiles: Sequence[Profile]) -> list[tuple[int, Profile, np.ndarray]]:
    """Place, profile and standardised values of those with layers enough for a shape; of two, one is always at -1."""
    centred = [profile.contribution - profile.contribution.mean() for profile in profiles]
    return [
        (i, profiles[i], values / (values.std() or 1.0))
        for i, values in enumerate(centred)
        if len(values) >= FEWEST_LAYERS
    ]


def _image(profiles: Sequence[Profile]) -> Image:
    """Return the chart with its legend, as far as colours go."""
    drawn = [(i, profile.name) for i, profile, _ in _drawn(profiles)]
    legend = [LegendEntry("line", name, _colour(i)) for i, name in drawn] if len(drawn) <= len(COLOURS) else []
    return Image("Profiles around their mean, in standard deviations over layers", _overlay(profiles, 800, 360), legend)
