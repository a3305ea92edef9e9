"""Bars and the matrix of what `dissect` and `compose` found."""

import pandas as pd

from layersweep.orchestrator.report.dissection_charts import dissection_charts, pair_chart
from layersweep.orchestrator.report.results import Results
from layersweep.workers.storage.tables import COMPOSITION, CONTRIBUTION, DISSECTION, SCORES, STEPS


def results(dissection=(), composition=()) -> Results:
    table = CONTRIBUTION.frame([
        {"selection": f"layer-0{k}", "kind": "layer", "layer": k, "score": 0.5, "contribution": 0.5 + k / 10}
        for k in (1, 5)
    ])  # fmt: skip
    return Results(
        table, STEPS.frame([]), SCORES.frame([]), "", DISSECTION.frame(list(dissection)),
        COMPOSITION.frame(list(composition)),
    )  # fmt: skip


def piece(selection: str, change: str, value: float, part=None, amount=None) -> dict:
    return {
        "selection": selection, "variant": f"{selection}.{part or amount}", "change": change, "part": part,
        "amount": amount, "contribution": value, "contribution_low": value - 0.1, "contribution_high": value + 0.1,
    }  # fmt: skip


def bars(chart) -> list[dict]:
    return [mark.attributes for mark in chart.marks if mark.cls == "bar"]


def test_a_bar_for_each_piece_of_each_run():
    """Heights are C on the chart's own scale; places are the runs, with a gap between them."""
    values = ((1, "mlp", 0.2), (1, "attention", 0.4), (5, "mlp", 0.8), (5, "attention", -0.1))
    parts = [piece(f"layer-0{k}", "part", value, part=part) for k, part, value in values]
    (panel,) = dissection_charts(results(parts))
    assert panel.title == "Parts of the change" and panel.meaning == "C of mlp, attention alone"
    drawn = bars(panel.chart)
    unit = panel.chart.y(0) - panel.chart.y(1)
    assert [round(bar["height"] / unit, 2) for bar in drawn] == [0.2, 0.4, 0.8, 0.1]
    assert drawn[3]["y"] == panel.chart.y(0)  # below the line
    assert [bar["data_tip"].splitlines()[0] for bar in drawn][:2] == ["layer-01.mlp", "layer-01.attention"]
    gaps = [round((b["x"] - a["x"]) / (drawn[1]["x"] - drawn[0]["x"])) for a, b in zip(drawn, drawn[1:], strict=False)]
    assert gaps == [1, 2, 1]


def test_runs_of_many_layers_are_drawn_by_layer():
    rows = [piece("full", how, 0.5, amount=float(k)) for how in ("only", "without") for k in (0, 1)]
    titles = [panel.title for panel in dissection_charts(results(rows))]
    assert titles == ["The change of one layer alone of full", "The change without one layer of full"]


def test_pairs_are_a_matrix_with_single_runs_on_its_diagonal():
    pair = {"stack": "stack-01-05", "rule": "pair", "members": ["layer-05", "layer-01"], "strength": 1.0,
            "split": "selection", "contribution": 0.98}  # fmt: skip
    assert pair_chart(results()) is None
    assert pair_chart(results(composition=[pair | {"strength": 0.5}])) is None
    chart = pair_chart(results(composition=[pair]))
    tips = [mark.attributes["data_tip"] for mark in chart.marks if mark.cls == "cell"]
    assert tips == ["layer-01 and layer-01\n0.60", "layer-01 and layer-05\n0.98", "layer-05 and layer-01\n0.98",
                    "layer-05 and layer-05\n1.00"]  # fmt: skip


def test_tables_without_any_of_it_have_no_charts():
    assert dissection_charts(results()) == []
    assert pd.DataFrame(results().dissection).empty
