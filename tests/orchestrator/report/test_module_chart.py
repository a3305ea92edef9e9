"""The heat map of C by layer and part."""

import pytest

from layersweep.orchestrator.report.module_chart import module_chart
from layersweep.orchestrator.report.page import render_page
from layersweep.orchestrator.report.results import Results
from layersweep.workers.storage.tables import CONTRIBUTION, PROBE, SCORES, STEPS


def results(*rows: tuple[int | None, str | None, float | None, int | None], probe=()) -> Results:
    """Rows: layer, part, C, and rank of adapters."""
    table = [
        {"selection": f"{layer}-{part}-{rank}", "kind": "part" if part or rank else "layer", "layer": layer,
         "modules": part, "contribution": value, "lora_rank": rank, "lora_alpha": rank and 2 * rank, "score": 0.5,
         "status": "completed", "model_layers": 8}
        for layer, part, value, rank in rows
    ]  # fmt: skip
    return Results(CONTRIBUTION.frame(table), STEPS.frame([]), SCORES.frame([]), "", probe=PROBE.frame(list(probe)))


def tips(chart) -> list[str]:
    return [mark.attributes["data_tip"] for mark in chart.marks if mark.cls == "cell"]


def test_a_row_for_each_part_and_a_column_for_each_layer():
    """The whole layer first, then the parts; what was not trained is empty."""
    chart = module_chart(results(
        (4, "mlp", 0.5, None), (1, "q_proj", -0.25, None), (1, None, 0.75, None), (4, None, 0.5, None),
        (1, "mlp", 0.125, 4),
    ))  # fmt: skip
    assert tips(chart) == [
        "layer and 01\n0.75", "layer and 04\n0.50", "mlp and 01\n–", "mlp and 04\n0.50", "q_proj and 01\n−0.25",
        "q_proj and 04\n–", "mlp lora-4-alpha-8 and 01\n0.12", "mlp lora-4-alpha-8 and 04\n–",
    ]  # fmt: skip
    assert chart.height > 4 * 42 and chart.width > 2 * 42


def test_all_parts_of_many_layers_are_named():
    """Thirty columns are narrow, and named every second; four rows are as high as their names."""
    parts = (None, "attention", "mlp", "norms")
    chart = module_chart(results(*((k, part, 0.5, None) for k in range(30) for part in parts)))
    named = [mark.text for mark in chart.marks if mark.cls == "tick"]
    assert named == ["layer", "attention", "mlp", "norms", *(f"{k:02d}" for k in range(0, 30, 2))]


@pytest.mark.parametrize(
    "rows",
    [
        [(1, None, 0.5, None), (2, None, 0.4, None)],
        [(1, None, 0.5, None), (1, "mlp", 0.4, None)],
        [(1, None, 0.5, None), (2, "mlp", None, None)],
        [(1, None, 0.5, None), (None, "embed_tokens", 0.4, None)],
        [],
    ],
)
def test_without_both_there_is_none(rows):
    assert module_chart(results(*rows)) is None


def test_the_page_shows_both_and_what_a_probe_predicts():
    probe = [
        {"selection": f"{k}-None-None", "layer": k, "seed": 0, "gradient_norm": float(k), "skip_loss": 0.5}
        for k in range(5)
    ]
    rows = [(k, part, 0.1 * k, None) for k in range(5) for part in (None, "mlp")]
    page = render_page(results(*rows, probe=probe))
    assert "C by layer and by what of it was trained" in page
    assert (
        "Does a probe predict the contribution?" in page and '<th scope="row">gradient norm</th><td>layers</td>' in page
    )
    assert "Does a probe predict" not in render_page(results(*rows))
    assert "at least four completed layers" in render_page(results(*rows[:3], probe=probe))
