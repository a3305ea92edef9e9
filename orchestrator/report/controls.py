"""Controls of a sweep: what else moves the score of what it trains, and C by learning rate."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from layersweep.orchestrator.statistics.null_controls import null_sentence
from layersweep.orchestrator.statistics.variants import kept_of_runs

from .format import format_interval, format_number
from .results import Results

LADDER = "learning_rate"


def control_section(results: Results) -> dict[str, Any] | None:
    """Return rows of the controls beside what each is a control of, and C by learning rate; None without controls."""
    rows = results.table[(results.table["kind"] == "control") & results.table["score"].notna()]
    if not len(rows):
        return None
    kept = _kept(results, rows)
    of = results.table.set_index("selection")
    found = [
        {
            "selection": row["selection"],
            "of": row["control_of"],
            "control": row["control"].replace("_", " "),
            "moved": format_number(row["update_norm"]),
            "of_moved": format_number(of.loc[row["control_of"], "update_norm"]),
            "score": format_number(row["score"], 3),
            "interval": format_interval(row["score_low"], row["score_high"], 3),
            "c": _with_interval(row, "contribution"),
            "of_c": _with_interval(of.loc[row["control_of"]], "contribution"),
            "kept": _with_interval(kept.get(row["selection"], {}), "kept"),
            "final": _with_interval(row, "final_contribution"),
        }
        for row in rows.to_dict("records")
    ]
    return {"rows": found, "ladder": _ladder(results, rows), "sentence": null_sentence(results.table)}


def _kept(results: Results, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Share of the gain of the run itself that each control has, on the selection split."""
    if not len(results.scores):
        return {}
    variants = pd.DataFrame({"selection": rows["control_of"], "variant": rows["selection"]})
    scored = set(results.table.loc[results.table["score"].notna(), "selection"])
    variants = variants[variants["selection"].isin(scored)]
    found = kept_of_runs(results.scores, results.table, variants, "selection", results.seed_sd)
    return {row["variant"]: row for row in found.to_dict("records")}


def _ladder(results: Results, rows: pd.DataFrame) -> dict[str, Any] | None:
    """C by learning rate: a row per selection, a column per factor of its rate; None without such controls."""
    ladder = rows[rows["control"] == LADDER]
    if not len(ladder):
        return None
    own = results.table.set_index("selection")
    cells: dict[str, dict[float, dict[str, Any]]] = {}
    for row in ladder.to_dict("records"):
        of = own.loc[row["control_of"]]
        cells.setdefault(row["control_of"], {1.0: of.to_dict()})[_factor(row, of)] = row
    factors = sorted({factor for found in cells.values() for factor in found})
    return {
        "factors": [f"× {factor:g}" for factor in factors],
        "rows": [(name, [_rung(found.get(factor)) for factor in factors]) for name, found in cells.items()],
    }


def _factor(row: dict[str, Any], of: pd.Series) -> float:
    return float(f"{row['learning_rate'] / of['learning_rate']:.3g}")


def _rung(row: dict[str, Any] | None) -> Sequence[str]:
    """Rate, and C with its interval."""
    if row is None:
        return "–", "", ""
    interval = "" if row["kind"] == "full" else format_interval(row["contribution_low"], row["contribution_high"])
    return format_number(row["contribution"]), interval, f"{row['learning_rate']:g}"


def _with_interval(row: Any, column: str) -> str:
    value, low, high = (row.get(f"{column}{end}") for end in ("", "_low", "_high"))
    return f"{format_number(value)} ({format_interval(low, high)})" if format_number(value) != "–" else "–"
