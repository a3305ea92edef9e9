"""Variants beside runs: C and the share of a run's gain that is kept, by hand."""

import numpy as np
import pandas as pd
import pytest

from layersweep.orchestrator.statistics.contribution import contribution_table
from layersweep.orchestrator.statistics.variants import kept_of_runs, seed_gains, variant_scores
from tests.helpers.tables import selections_of

SCORES = {
    "base": [0.0, 0.1, 0.0, 0.1],
    "full": [1.0, 0.9, 0.9, 1.0],
    "layer-01": [0.5, 0.5, 0.6, 0.4],
    "layer-01.mlp": [0.2, 0.3, 0.3, 0.2],
    "layer-01.random": [0.0, 0.1, 0.1, 0.0],
}


RUNS = selections_of("base", "full", "layer-01")


def responses(split: str = "selection") -> pd.DataFrame:
    rows = [
        {"selection": name, "seed": 0, "step": 0 if name == "base" else 9, "suite": "s", "split": split,
         "prompt": f"p{i}", "sample": 0, "score": score, "response_tokens": 3, "truncated": False, "format_ok": True}
        for name, scores in SCORES.items()
        for i, score in enumerate(scores)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def variants() -> pd.DataFrame:
    names = ["layer-01", "layer-01.mlp", "layer-01.random"]
    return pd.DataFrame({"selection": "layer-01", "variant": names, "change": ["whole", "part", "random"]})


def test_contribution_is_that_of_the_table():
    """Means .05, .95, .5, .25, .05: C = .45/.9, .2/.9, 0."""
    facts = selections_of("base", "full", "layer-01", "layer-02")
    found = variant_scores(responses(), facts, variants(), "selection")
    np.testing.assert_allclose(found["score"], [0.5, 0.25, 0.05])
    np.testing.assert_allclose(found["contribution"], [0.5, 2 / 9, 0.0], atol=1e-12)
    assert (found["contribution_low"] <= found["contribution"]).all()
    assert list(found["change"]) == ["whole", "part", "random"]


def test_kept_is_against_the_run_itself():
    """.2/.45 of the run's gain; the run keeps all of its own, whatever the full run did."""
    scores = responses()
    scores.loc[scores["selection"] == "full", "score"] = 0.0
    found = kept_of_runs(scores, RUNS, variants(), "selection").set_index("variant")
    assert found.loc["layer-01", "kept"] == 1.0
    assert found.loc["layer-01.mlp", "kept"] == pytest.approx(0.2 / 0.45)
    assert found.loc["layer-01.mlp", "kept_low"] < 0.2 / 0.45 < found.loc["layer-01.mlp", "kept_high"]
    assert found.loc["layer-01.random", "kept"] == pytest.approx(0.0, abs=1e-12)


def test_what_gained_nothing_keeps_nothing_that_could_be_told():
    scores = responses()
    scores.loc[scores["selection"] == "layer-01", "score"] = [0.0, 0.1, 0.1, 0.0]
    found = kept_of_runs(scores, RUNS, variants(), "selection").set_index("variant")
    assert pd.isna(found.loc["layer-01.mlp", "kept"])
    assert "gained nothing" in found.loc["layer-01.mlp", "kept_reason"]


def test_splits_are_apart():
    """Final scores of the same variants are others, and the selection split's are not among them."""
    final = responses("final")
    final.loc[final["selection"] == "layer-01.mlp", "score"] = 0.5
    both = pd.concat([responses(), final])
    facts = selections_of("base", "full", "layer-01")
    for split, expected in (("selection", 0.25), ("final", 0.5)):
        assert (
            variant_scores(both, facts, variants(), split).set_index("variant").loc["layer-01.mlp", "score"] == expected
        )


def test_seeds_of_runs_alone_say_how_training_runs_differ():
    """Two seeds of full and two layers: 3 degrees of freedom, whatever number of variants is scored beside them. A run
    as its own variant has the interval of the sweep's own table, and a known seed_sd replaces the estimate."""
    rng = np.random.default_rng(0)
    level = {"base": 0.1, "full": 0.9, "layer-01": 0.5, "layer-02": 0.6, "layer-01.mlp": 0.3, "layer-01.random": 0.1}
    rows = [
        {"selection": name, "seed": seed, "step": 0 if name == "base" else 9, "suite": "s", "split": "selection",
         "prompt": f"p{i}", "sample": 0, "score": mean + 0.1 * seed * (name != "base") + noise, "response_tokens": 3,
         "truncated": False, "format_ok": True}
        for name, mean in level.items()
        for seed in range(1 if name == "base" else 2)
        for i, noise in enumerate(rng.normal(0, 0.02, 20))
    ]  # fmt: skip
    scores, runs = pd.DataFrame(rows), selections_of("base", "full", "layer-01", "layer-02")
    for seed_sd in (None, 0.05):
        own = contribution_table(
            scores[scores["selection"].isin(runs["selection"])], runs, split="selection", seed_sd=seed_sd
        ).set_index("selection")
        found = variant_scores(scores, runs, variants(), "selection", seed_sd).set_index("variant")
        for column in ("score_low", "score_high", "contribution_low", "contribution_high"):
            assert found.loc["layer-01", column] == own.loc["layer-01", column], column
        # As wide as its run's: the same variance between seeds, t of as many degrees of freedom.
        half = [found.loc[name, "score_high"] - found.loc[name, "score"] for name in ("layer-01", "layer-01.mlp")]
        assert half[0] == pytest.approx(half[1], rel=0.05)
    kept = kept_of_runs(scores, runs, variants(), "selection").set_index("variant")
    assert kept.loc["layer-01", "kept"] == 1.0
    few = variant_scores(scores, runs, variants()[:2], "selection").set_index("variant")
    many = variant_scores(scores, runs, variants(), "selection").set_index("variant")
    assert few.loc["layer-01.mlp", "score_low"] == many.loc["layer-01.mlp", "score_low"]


def test_gains_of_each_seed_by_itself():
    """Over the base's 0, .5, .5, 1, which it was scored with once: differences 1, 0, .5, -.5 have a mean of .25 and a
    variance of 1.25 / 3, whose error is sqrt(1.25 / 12); of seed 1 all are .5."""
    scores = {("base", 0): [0, 0.5, 0.5, 1], ("layer-01", 0): [1, 0.5, 1, 0.5], ("layer-01", 1): [0.5, 1, 1, 1.5]}
    rows = pd.DataFrame([
        {"selection": name, "seed": seed, "step": 0 if name == "base" else 3, "suite": "s", "split": "selection",
         "prompt": f"p{i}", "sample": 0, "score": score}
        for (name, seed), values in scores.items() for i, score in enumerate(values)
    ])  # fmt: skip
    first, second = seed_gains(rows, {0: ["layer-01"], 1: ["layer-01"], 2: []}, 3).to_dict("records")
    assert first["gain"] == 0.25 and (first["seed"], first["prompts"]) == (0, 4)
    assert first["gain_high"] - 0.25 == pytest.approx(1.959964 * np.sqrt(1.25 / 12)) == 0.25 - first["gain_low"]
    assert (second["seed"], second["gain"], second["gain_low"], second["gain_high"]) == (1, 0.5, 0.5, 0.5)
    assert list(seed_gains(rows, {0: []}, 3)) == list(seed_gains(rows, {0: ["layer-01"]}, 3))
