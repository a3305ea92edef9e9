"""Contributions by suite, against the formulas written out once more."""

import numpy as np
import pandas as pd
import pytest

from layersweep.orchestrator.statistics.contribution import contribution_table
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.workers.storage.tables import SCORES, STEPS
from tests.helpers.tables import run_facts, selections_in

COUNTS = {"a": True, "b": True, "other": False}
RATES = {"base": (0.2, 0.3, 0.6), "full": (0.7, 0.6, 0.4), "layer-00": (0.4, 0.5, 0.65), "layer-01": (0.6, 0.3, 0.3)}
"""Chance of a right response on a, b and the suite that does not count."""


def scores(counts=COUNTS, seeds=(0,), split="selection") -> pd.DataFrame:
    """Binary scores: 60, 40 and 50 prompts, 4 samples; the base has the first seed alone."""
    rng = np.random.default_rng(7)
    rows = [
        (name, seed, 0 if name == "base" else 10, suite, split, f"{suite}{prompt}", sample, float(rng.random() < rate),
         20, False, True, counts[suite])
        for name, rates in RATES.items()
        for suite, rate, prompts in zip(COUNTS, rates, (60, 40, 50), strict=True)
        for seed in (seeds[:1] if name == "base" else seeds)
        for prompt in range(prompts)
        for sample in range(4)
    ]  # fmt: skip
    columns = ["selection", "seed", "step", "suite", "split", "prompt", "sample", "score", "response_tokens",
               "truncated", "format_ok", "counts"]  # fmt: skip
    return SCORES.frame(pd.DataFrame(rows, columns=columns))


def independent(found: pd.DataFrame, suites: list[str], layer: str) -> dict[str, float]:
    """Gain and C of a layer over some suites at one seed, from the definitions: means, covariances, Fieller's roots."""
    gains, cov = np.zeros(2), np.zeros((2, 2))
    for suite in suites:
        mean = found[found["suite"] == suite].groupby(["selection", "prompt"])["score"].mean().unstack("selection")
        paired = np.stack([mean[layer] - mean["base"], mean["full"] - mean["base"]])
        gains += paired.mean(axis=1) / len(suites)
        cov += np.cov(paired) / paired.shape[1] / len(suites) ** 2
    t2 = 1.959963984540054**2
    quadratic = [gains[1] ** 2 - t2 * cov[1, 1], -2 * (gains[0] * gains[1] - t2 * cov[0, 1]),
                 gains[0] ** 2 - t2 * cov[0, 0]]  # fmt: skip
    low, high = sorted(np.roots(quadratic))
    half = np.sqrt(t2 * cov[0, 0])
    return {"gain": gains[0], "gain_low": gains[0] - half, "gain_high": gains[0] + half,
            "contribution": gains[0] / gains[1], "contribution_low": low, "contribution_high": high}  # fmt: skip


def test_gain_and_contribution_of_every_suite_and_group():
    found = scores()
    table = suite_table("s", selections_in(found), found).set_index(["suite", "selection"])
    groups = {"a": ["a"], "b": ["b"], "other": ["other"], "@in_domain": ["a", "b"], "@out_of_domain": ["other"],
              "@all": ["a", "b", "other"]}  # fmt: skip
    assert list(table.index.unique("suite")) == list(groups)
    for group, suites in groups.items():
        for layer in ("layer-00", "layer-01"):
            row, expected = table.loc[(group, layer)], independent(found, suites, layer)
            if group in ("other", "@out_of_domain"):  # full lost there: there is a gain, and no share of it
                assert "the full run lost" in row["contribution_reason"] and np.isnan(row["contribution"])
                expected = {name: expected[name] for name in ("gain", "gain_low", "gain_high")}
            np.testing.assert_allclose([row[name] for name in expected], list(expected.values()), rtol=1e-9)
    assert table["counts"].xs("full", level="selection").astype(object).where(lambda c: c.notna(), None).tolist() == [
        True, True, False, None, None, None,
    ]  # fmt: skip
    assert table.loc[("other", "layer-01"), "gain_high"] < 0  # .6 to .3 on 50 prompts: forgotten
    assert np.isnan(table.loc[("a", "base"), "gain"]) and table.loc[("a", "full"), "contribution"] == 1.0


def test_a_suite_that_does_not_count_changes_nothing_by_a_bit():
    """Scores with the suite that does not count, and without it: the same contribution table."""
    found = scores(seeds=(0, 1, 2))
    runs = pd.DataFrame([run_facts(name) | {"status": "completed", "reason": None} for name in RATES])
    constants = {"sweep": "s", "model": "m", "algorithm": "grpo", "task": "t"}
    with_it, without = (
        sweep_table(constants, runs, STEPS.frame([]), rows) for rows in (found, found[found["suite"] != "other"])
    )
    pd.testing.assert_frame_equal(with_it, without, check_exact=True)
    counted = sweep_table(constants, runs, STEPS.frame([]), scores(dict.fromkeys(COUNTS, True), (0, 1, 2)))
    assert (counted["score"] != with_it["score"]).all()


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_in_domain_is_the_contribution_table_itself(seeds):
    """To the bit, with the seeds' part; with every suite counting, so is `@all`."""
    for counts, group in ((COUNTS, "@in_domain"), (dict.fromkeys(COUNTS, True), "@all")):
        found = scores(counts, seeds)
        whole = contribution_table(found, selections_in(found), split="selection").set_index("selection")
        by_suite = suite_table("s", selections_in(found), found)
        part = by_suite[by_suite["suite"] == group].set_index("selection")
        for column in ("score", "score_low", "score_high", "contribution", "contribution_low", "contribution_high"):
            assert part[column].to_dict() == whole[column].to_dict(), column
        assert ("@out_of_domain" in set(by_suite["suite"])) is (counts is COUNTS)


def test_no_scores_no_rows():
    empty = SCORES.frame([])
    assert not len(suite_table("s", selections_in(empty), empty))


def test_a_group_has_rows_once_a_selection_is_scored_on_all_of_it():
    found = scores()
    half = found[(found["suite"] == "a") == (found["selection"] == "base")]  # base on a, the others on b and other
    table = suite_table("s", selections_in(half), half)
    assert table.groupby("suite", sort=False)["selection"].agg(list).to_dict() == {
        "a": ["base"], "b": [*RATES][1:], "other": [*RATES][1:], "@out_of_domain": [*RATES][1:],
    }  # fmt: skip
    assert table["gain"].isna().all() and set(table["contribution_reason"]) == {"no base scores", "no full run"}


def test_a_gain_s_interval_holds_the_seeds_part():
    """Every prompt scores the same, so that seeds are all the noise: layer 0 .58 and .62, full .98 and 1.02, base 0.
    Pooled sigma^2 .0008 with 2 degrees of freedom, t 4.30265: 4.30265 * sqrt(.0008 / 2) = .086053."""
    values = {"base": [0.0], "full": [0.98, 1.02], "layer-00": [0.58, 0.62]}
    rows = [
        {"selection": name, "seed": seed, "step": 0 if name == "base" else 10, "suite": "a", "split": "selection",
         "prompt": f"p{prompt}", "sample": 0, "score": score}
        for name, scored in values.items() for seed, score in enumerate(scored) for prompt in range(20)
    ]  # fmt: skip
    found = SCORES.frame(rows)
    layer = suite_table("s", selections_in(found), found).set_index(["suite", "selection"]).loc[("a", "layer-00")]
    assert layer["gain"] == pytest.approx(0.6)
    assert layer["gain_high"] - layer["gain"] == pytest.approx(0.086053, rel=1e-4)
