"""The page: everything put into one HTML file that needs nothing else."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from layersweep.orchestrator.report import cost_charts as costs
from layersweep.orchestrator.report import curve_charts as curves
from layersweep.orchestrator.report import dissection_charts as dissection
from layersweep.orchestrator.report import findings
from layersweep.orchestrator.report import gain_charts as gains
from layersweep.orchestrator.report import matrix_chart as agreement
from layersweep.orchestrator.report import profile_chart as profile
from layersweep.orchestrator.report import table_rows as rows
from layersweep.orchestrator.report.module_chart import module_chart
from layersweep.orchestrator.statistics.early_signals import early_signals
from layersweep.orchestrator.statistics.probe_agreement import LOOKED_AT, MEASURES, probe_agreement
from layersweep.orchestrator.statistics.seeds_needed import seeds_needed, seeds_text
from layersweep.orchestrator.statistics.solved_prompts import solved_overlap

from .base_success import base_success_section
from .chart import Chart
from .controls import control_section
from .format import format_number
from .results import Results
from .sampling_charts import curves_shown, sampling_charts, sampling_rows, sampling_sentence
from .suites import suite_section
from .svg import css_colour, svg

WIDE, NARROW = 880, 358
"""Widths of the two versions of the large charts: a laptop's and a phone's, of which the page shows one."""


def render_page(results: Results) -> str:
    """Return the report of a sweep, finished or not."""
    shared = solved_overlap(results.scores, results.table) if len(results.scores) else None
    signals = early_signals(results.table, results.steps)
    return environment().get_template("page.html.j2").render(
        results=results,
        facts=_facts(results),
        headline=findings.headline(results),
        tiles=findings.tiles(results),
        running=bool(results.table["status"].eq("running").any()),
        measure=profile.measure(results),
        legend=profile.legend(results),
        modules=module_chart(results),
        profile=_both(lambda width, height: profile.profile_chart(results, width, height), 330, 270),
        learning=_both(
            lambda width, height: curves.curve_chart(results, "reward_mean", "mean training reward", (width, height)),
            300, 230,
        ),
        runs=_runs(results),
        health=curves.health_charts(results),
        gains=gains.gain_charts(results),
        dissection=dissection.dissection_charts(results),
        pairs=dissection.pair_chart(results),
        rates=findings.rates(results),
        shared=shared and {
            "matrix": agreement.matrix_chart(
                shared.jaccard,
                "Jaccard overlap of what single-layer models solve",
                [results.label(name) for name in shared.layers],
            ),
            "rows": agreement.vote_rows(shared),
            "mean": agreement.mean_overlap(shared.jaccard),
            "beyond": agreement.mean_overlap(shared.beyond_base),
        },
        signals=signals,
        probe=probe_agreement(results.probe, results.table).to_dict("records"),
        measures=MEASURES,
        looked_at=LOOKED_AT,
        predicted=next((signal for signal in signals if signal.spearman == signal.spearman), None),
        costs=costs.cost_charts(results),
        totals=costs.totals(results),
        columns=rows.COLUMNS,
        rows=rows.table_rows(results),
        finalists=findings.finalists(results),
        categories=findings.categories(results),
        overstates=findings.OVERSTATES,
        unfinished=findings.unfinished(results),
        saved=findings.saved(results),
        suites=suite_section(results),
        sampling=_sampling(results),
        seeds_needed=_seeds_needed(results),
        controls=control_section(results),
        base_success=base_success_section(results),
        written=now(),
    )  # fmt: skip


@cache
def environment() -> Environment:
    """Return templates, with the style sheets and the script as variables to put inline."""
    folder = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join((folder / name).read_text(encoding="utf-8") for name in ("chart.css", "style.css"))
    made.globals["style"] = Markup(style)
    made.globals["script"] = Markup((folder / "page.js").read_text(encoding="utf-8"))
    made.filters |= {"number": format_number, "svg": svg}
    return made


def now() -> str:
    """Time of writing, for a page's foot."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _both(draw, wide: int, narrow: int) -> tuple[Chart, Chart] | None:
    """Return a chart for laptops and the same for phones."""
    charts = draw(WIDE, wide), draw(NARROW, narrow)
    return None if charts[0] is None else charts


def _seeds_needed(results: Results) -> str:
    """How many seeds a wanted width takes; nothing without scores."""
    if not len(results.scores):
        return ""
    return seeds_text(seeds_needed(results.scores, results.table, results.seed_sd))


def _sampling(results: Results) -> dict | None:
    """Return the section on several samples; None where prompts have one each."""
    found, split = curves_shown(results)
    if not len(found):
        return None
    heads, shown = sampling_rows(results, found)
    return {
        "panels": sampling_charts(results, found),
        "heads": heads,
        "rows": shown,
        "split": split,
        "sentence": sampling_sentence(found),
    }


def _facts(results: Results) -> list[tuple[str, str]]:
    """Return facts on what was run, from the constant columns."""
    first = results.table.iloc[0] if len(results.table) else pd.Series(dtype=object)
    names = ("model", "algorithm", "task")
    facts = [(name, str(first[name])) for name in names if pd.notna(first.get(name))]
    layers = results.table["kind"].eq("layer").sum()
    facts.append(("layers", f"{layers} of {results.model_layers}" if layers else "none"))
    seeds, prompts = (results.table[name].dropna() for name in ("seeds", "prompts"))
    if len(seeds):
        facts.append(("seeds", str(int(seeds.max()))))
    if len(prompts):
        facts.append(("evaluation prompts", f"{int(prompts.max()):,}"))
    return facts


def _runs(results: Results) -> list[tuple[str, str, str, str]]:
    """Return the legend of the curves: selection, short name, class, style."""
    found = []
    for name in curves.curves(results, "reward_mean"):
        colour = curves.line_colour(results, name)
        style = f"--c: {css_colour(colour)}" if colour else ""
        found.append((name, results.label(name), curves.line_class(results, name), style))
    return found
