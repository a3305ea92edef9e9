"""The tables of docs/results follow from the responses that are kept beside them."""

import re
from pathlib import Path

import pandas as pd
import pytest

from layersweep.orchestrator.statistics.contribution import contribution_table

RESULTS = sorted(path.parent for path in (Path(__file__).parents[1] / "docs/results").glob("*/contribution.parquet"))
NUMBERS = ["score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high"]


@pytest.fixture(params=RESULTS, ids=lambda folder: folder.name)
def published(request) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """A folder, its table by selection, and the responses of the split that the table is made of."""
    folder = request.param
    table = pd.read_parquet(folder / "contribution.parquet")
    scores = pd.read_parquet(folder / "scores.parquet")
    return folder, table[table["score"].notna()].set_index("selection"), scores[scores["split"] == "selection"]


def test_scores_and_contributions_by_hand(published):
    """S is the mean over prompts of the mean over samples; C(k) = (S_k - S_base) / (S_full - S_base)."""
    _, table, scores = published
    last = scores[scores["step"] == scores.groupby("selection")["step"].transform("max")]
    score = last.groupby(["selection", "seed", "prompt"])["score"].mean().groupby("selection").mean()
    contribution = (score - score["base"]) / (score["full"] - score["base"])
    pd.testing.assert_series_equal(table["score"], score.reindex(table.index), check_names=False)
    pd.testing.assert_series_equal(table["contribution"], contribution.reindex(table.index), check_names=False)


def test_intervals_are_computed_again(published):
    _, table, scores = published
    again = contribution_table(scores, table.reset_index(), split="selection").set_index("selection")
    pd.testing.assert_frame_equal(table[NUMBERS], again.loc[table.index, NUMBERS], rtol=1e-9)


def test_the_csv_says_what_the_parquet_says(published):
    folder, table, _ = published
    written = pd.read_csv(folder / "contribution.csv", index_col="selection")
    pd.testing.assert_frame_equal(written.loc[table.index, NUMBERS], table[NUMBERS], rtol=1e-9)


def test_the_table_of_the_readme():
    """The demo's, to the digits that are printed there."""
    root = RESULTS[0].parents[2]
    table = pd.read_parquet(root / "docs/results/demo/contribution.parquet").set_index("selection")
    rows = re.findall(r"^    (base|full|layer-\d+) +([\d.]+ .*)$", (root / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(table.index)
    for name, numbers in rows:
        given = [float(number) for number in re.findall(r"[\d.]*\d", numbers)]
        assert given == table.loc[name, NUMBERS[: len(given)]].astype(float).round(3).tolist()
