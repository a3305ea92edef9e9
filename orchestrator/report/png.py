"""The PNGs: profile.png, and report.png with the learning curves beside it, for a README or a slide."""

from collections.abc import Callable
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from .curve_charts import curves  # noqa: E402
from .profile_chart import levels, limits, measure, shown, standing  # noqa: E402
from .results import Results  # noqa: E402

STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#eceef0", "axes.axisbelow": True, "axes.edgecolor": "#9aa2ad", "axes.titlelocation": "left",
    "axes.titleweight": "bold", "axes.titlesize": 12, "legend.frameon": False, "savefig.dpi": 150,
}  # fmt: skip
COLOURS = {"best": "#1f5fd1", "tied": "#7fa6ea", "other": "#a3abb6", "several": "#a1308f"}
NAMES = {"best": "best", "tied": "tied with the best", "other": "other layers", "several": "combined runs"}


def images(results: Results) -> dict[str, Callable[[BinaryIO], object]]:
    """File names, and what writes each."""
    return {"profile.png": lambda file: _profile(results, file), "report.png": lambda file: _overview(results, file)}


def _profile(results: Results, file: BinaryIO) -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
        draw_profile(axes, results)
        figure.savefig(file, format="png")
        plt.close(figure)


def _overview(results: Results, file: BinaryIO) -> None:
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.4), layout="constrained")
        draw_profile(left, results)
        _draw_curves(right, results)
        figure.savefig(file, format="png")
        plt.close(figure)


def draw_profile(axes: Axes, results: Results) -> None:
    """Contribution, or score, with intervals; the lines of base and full; the final split as diamonds."""
    column, lines, rows = measure(results), levels(results), shown(results)
    low, high = limits(rows, column, lines)
    for name, value in lines.items():
        axes.axhline(value, color="#17191c" if name == "full" else "#646a73", lw=1, ls="-" if name == "full" else "--")
        axes.annotate(name, (1, value), (4, -3), xycoords=("axes fraction", "data"), textcoords="offset points")
    layers = rows[rows["kind"] == "layer"]
    axes.plot(layers["place"], layers[column], color="#a3abb6", lw=0.8, alpha=0.6, zorder=1)
    marks = [standing(row) for row in rows.to_dict("records")]
    for mark, colour in COLOURS.items():
        own = rows[[each == mark for each in marks]]
        if not len(own):
            continue
        value = own[column].astype(float)
        ends = [own[f"{column}_{end}"].astype(float).clip(low, high) for end in ("low", "high")]
        errors = [(value - ends[0]).clip(lower=0), (ends[1] - value).clip(lower=0)]
        axes.errorbar(own["place"], value, yerr=errors, fmt="none", ecolor=colour, elinewidth=1.6)
        done = own["status"] == "completed"
        axes.scatter(own["place"][done], value[done], s=34, color=colour, zorder=3, label=NAMES[mark])
        axes.scatter(own["place"][~done], value[~done], s=30, facecolor="white", edgecolor=colour, zorder=3)
    if column == "contribution" and rows["final_contribution"].notna().any():
        final = rows.dropna(subset=["final_contribution"])
        axes.scatter(final["place"], final["final_contribution"], marker="D", s=30, facecolor="white",
                     edgecolor="#c2500c", zorder=4, label="on the final split")  # fmt: skip
    name = results.table["sweep"].iloc[0] if len(results.table) else ""
    what = "layer contribution C" if column == "contribution" else "score"
    axes.set(xlabel="layer", ylabel=what, title=f"{name}: {what}, 95 % intervals", ylim=(low, high))
    every = max(1, len(layers) // 14)
    shown_layers, several = layers.iloc[::every], rows[rows["kind"] != "layer"]
    labels = [*shown_layers["layer"].astype(str), *several["selection"]]
    axes.set_xticks([*shown_layers["place"], *several["place"]], labels, rotation=40 if len(several) else 0)
    if len(rows):
        axes.legend(fontsize=9, loc="best")


def _draw_curves(axes: Axes, results: Results) -> None:
    lines = curves(results, "reward_mean")
    for name, curve in lines.items():
        if name == "full":
            style = {"color": "#17191c", "lw": 2}
        elif (depth := results.depth(name)) == depth:
            style = {"color": plt.get_cmap("viridis")(0.9 * depth), "lw": 1.2}
        else:
            style = {"color": COLOURS["several"], "lw": 1.4}
        axes.plot(curve.index, curve.to_numpy(), label=name, **style)
    axes.set(xlabel="step", ylabel="mean training reward", title="learning curves")
    if 0 < len(lines) <= 12:
        axes.legend(fontsize=9, ncols=2)
