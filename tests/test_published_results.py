"""The tables of docs/results follow from the responses that are kept beside them."""

import re
from pathlib import Path

import pandas as pd
import pytest

from layersweep.orchestrator.statistics.contribution import contribution_table

RESULTS = sorted(path.parent for path in (Path(__file__).parents[1] / "docs/results").rglob("contribution.parquet"))
NUMBERS = ["score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high"]


@pytest.fixture(params=RESULTS, ids=lambda folder: folder.name)
def published(request) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """A folder, its table by selection, and the responses of the split that the table is made of."""
    folder = request.param
    table = pd.read_parquet(folder / "contribution.parquet")
    scores = pd.read_parquet(folder / "scores.parquet")
    return folder, table[table["score"].notna()].set_index("selection"), scores[scores["split"] == "selection"]


def test_scores_and_contributions_by_hand(published):
    """S is the mean over prompts of the mean over samples; C(k) = (S_k - S_base) / (S_full - S_base), with S_full after
    as many steps where a search has stopped a layer early."""
    _, table, scores = published
    by_step = scores.groupby(["selection", "step", "seed", "prompt"])["score"].mean()
    by_step = by_step.groupby(["selection", "step"]).mean()
    step = scores.groupby("selection")["step"].max()
    score = pd.Series({name: by_step[name, last] for name, last in step.items()})
    full = pd.Series({name: by_step["full", last or step["full"]] for name, last in step.items()})
    contribution = (score - score["base"]) / (full - score["base"])
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


def test_what_was_said_of_the_demo_s_probe_and_pieces():
    """docs/results/demo-analyses.md, to the digits that are printed there: what of each run's gain its pieces keep, and
    the rank correlation of the screening and of the first-order gain with C."""
    folder = RESULTS[0].parent / "demo"
    page = (RESULTS[0].parent / "demo-analyses.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", page, re.MULTILINE))
    table = pd.read_parquet(folder / "contribution.parquet").set_index("selection")
    runs = ["full", *(f"layer-0{k}" for k in range(6))]
    pieces = pd.read_parquet(folder / "dissection.parquet").set_index("variant")["kept"]
    labels = {"attention alone": "attention", "MLP alone": "mlp", "norms alone": "norms", "rank 1": "rank-1",
              "rank 4": "rank-4", "the largest 10 % of the entries": "largest-0.1", "the largest 30 %": "largest-0.3",
              "half": "x0.5", "one and a half times": "x1.5", "twice": "x2",
              "null: a random change of the same norm": "random"}  # fmt: skip
    for said, label in labels.items():
        printed = [float(number) for number in rows[said].split(" | ")]
        assert printed == pytest.approx(pieces[[f"{run}.{label}" for run in runs]].tolist(), abs=0.0051), said
    measures = (
        pd.read_parquet(folder / "probe.parquet").groupby("selection")[["screened_gain", "first_order_gain"]].mean()
    )
    seen = measures.loc[runs[1:]].rank().corrwith(table.loc[runs[1:], "contribution"].rank())
    assert rows["gain of a training of 3 steps"].startswith(f"**{seen['screened_gain']:.2f}**".replace("0.", "."))
    assert rows["first-order gain"].startswith(f"{seen['first_order_gain']:.2f}".replace("0.", "."))
