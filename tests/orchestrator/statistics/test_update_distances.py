"""The sentence on unequal distances, by hand."""

import pandas as pd
import pytest

from layersweep.orchestrator.statistics.update_distances import distance_sentence


def table(*rows: tuple[str, float | None, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["kind", "update_norm", "status"])


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0.5, 1.0], ""),  # 1 and 2 times
        ([1.1, 2.0], "2.2 to 4"),
        ([0.2, 0.4], "0.4 to 0.8"),
        ([2.0, 2.01], "4"),
    ],
)
def test_distances_of_more_than_a_factor_of_two_are_named(layers, said):
    rows = [("full", 0.5, "completed"), *(("layer", norm, "completed") for norm in layers)]
    sentence = f"Single layers moved {said} times as far from the base as full did (L2 norm), at their learning rates."
    assert distance_sentence(table(*rows)) == (sentence if said else "")


def test_only_completed_runs_of_both_kinds_are_compared():
    base, full, layer = ("base", None, "completed"), ("full", 0.5, "completed"), ("layer", 0.5, "completed")
    assert distance_sentence(table(base, full, layer, ("layer", 9.0, "pruned"), ("layers", 9.0, "completed"))) == ""
    assert distance_sentence(table(base, ("layer", 9.0, "completed"))) == ""
    assert distance_sentence(table(base, full)) == ""
    assert distance_sentence(table(("full", 0.0, "completed"), layer)) == ""
