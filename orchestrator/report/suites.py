"""Scores by suite: what each run gained or lost on it, and its contribution there."""

from dataclasses import dataclass

import pandas as pd

from layersweep.orchestrator.statistics.suite_table import ALL, IN_DOMAIN, OUT_OF_DOMAIN, suite_table

from .format import format_interval, format_number
from .profile_chart import row_class
from .results import Results

NAMES = {IN_DOMAIN: "in domain", OUT_OF_DOMAIN: "out of domain", ALL: "all suites"}


@dataclass(frozen=True)
class SuiteSection:
    """The page's table of suites: a column per suite and group, a row per selection."""

    columns: list[tuple[str, bool]]
    """Name of each, and whether it is a suite that is no part of the score."""
    rows: list[dict]
    forgotten: str
    """A sentence on what was lost out of domain; empty where every suite counts."""


def suite_section(results: Results) -> SuiteSection | None:
    """Return scores on the selection split by suite; None where there is one suite alone, which the table shows
    already."""
    if not len(results.scores):
        return None
    table = suite_table("", results.table, results.scores, seed_sd=results.seed_sd)
    table = table[table["split"] == "selection"]
    suites = table["suite"].unique()
    if table["counts"].notna().sum() == 0 or len([name for name in suites if name not in NAMES]) < 2:
        return None
    columns = [name for name in suites if name != IN_DOMAIN or OUT_OF_DOMAIN in suites]
    if OUT_OF_DOMAIN not in suites:
        columns.remove(ALL)  # the score itself
    cells = {(row["selection"], row["suite"]): row for row in table.to_dict("records")}
    kl = last_kl(results)
    rows = [
        {
            "selection": row["selection"],
            "mark": row_class(row),
            "kl": format_number(kl.get(row["selection"]), 4),
            "cells": [score_cell(cells.get((row["selection"], name))) for name in columns],
        }
        for row in results.table.to_dict("records")
        if (row["selection"], columns[0]) in cells
    ]
    uncounted = {row["suite"] for row in table.to_dict("records") if row["counts"] is False}
    names = [(NAMES.get(name, name), name in uncounted) for name in columns]
    return SuiteSection(names, rows, _forgotten(table) if OUT_OF_DOMAIN in suites else "")


def last_kl(results: Results) -> dict[str, float]:
    """KL to the base at each selection's last step that it was measured at, the mean over seeds."""
    measured = results.steps.dropna(subset=["kl"]).sort_values("step")
    last = measured.groupby(["selection", "seed"])["kl"].last()
    return last.groupby("selection").mean().to_dict()


def score_cell(row: dict | None) -> dict:
    """Text of one selection on one suite: the base's score, the others' gain and C, each with its interval."""
    if row is None:
        return {"value": "–", "interval": "", "contribution": ""}
    if row["kind"] == "base":
        interval = format_interval(row["score_low"], row["score_high"], 3)
        return {"value": format_number(row["score"], 3), "interval": interval, "contribution": "score"}
    gain = format_number(row["gain"], 3)
    share = ""
    if row["kind"] != "full":
        interval = format_interval(row["contribution_low"], row["contribution_high"])
        share = "no C" if pd.isna(row["contribution"]) else f"C {format_number(row['contribution'])} ({interval})"
    return {
        "value": gain if pd.isna(row["gain"]) or row["gain"] < 0 else f"+{gain}",
        "interval": format_interval(row["gain_low"], row["gain_high"], 3),
        "contribution": share,
    }


def _forgotten(table: pd.DataFrame) -> str:
    trained = table[(table["suite"] == OUT_OF_DOMAIN) & (table["kind"] != "base")]
    lost = trained[trained["gain_high"] < 0].sort_values("gain")
    if not len(lost):
        return f"Out of domain none of {len(trained)} selections lost more than its noise explains."
    worst = lost.iloc[0]
    interval = format_interval(worst["gain_low"], worst["gain_high"], 3)
    return (
        f"Out of domain {len(lost)} of {len(trained)} selections lost more than their noise explains, the most "
        f"{worst['selection']}: {format_number(worst['gain'], 3)} ({interval})."
    )
