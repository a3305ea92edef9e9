"""pass@k and maj@k: closed forms on counts made by hand, every subset counted, and the intervals' coverage."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from layersweep.orchestrator.statistics import intervals
from layersweep.orchestrator.statistics.sampling_curves import majority_at_k, pass_at_k, sampling_curves
from layersweep.workers.storage.tables import SCORES
from tests.helpers.tables import selections_in


def rows(selection, right, answers=None, *, seed=0, step=10, suite="a", split="final", first=0) -> pd.DataFrame:
    """Responses of [prompts, samples] right or wrong, with their answers."""
    right = np.asarray(right, float)
    count, samples = right.shape
    return SCORES.frame(
        pd.DataFrame(
            {
                "selection": selection, "seed": seed, "step": 0 if selection == "base" else step, "suite": suite,
                "split": split, "prompt": np.repeat([f"{suite}{first + i}" for i in range(count)], samples),
                "sample": np.tile(np.arange(samples), count), "score": right.ravel(),
                "answer": None if answers is None else np.asarray(answers, object).ravel(),
            }
        )
    )  # fmt: skip


def curves(*parts, split="final") -> pd.DataFrame:
    scores = pd.concat(parts, ignore_index=True)
    return sampling_curves(scores, selections_in(scores), split).set_index(["selection", "measure", "k"])


def test_pass_at_k_of_counts_made_by_hand():
    """n = 4: c = 1 gives 1 - C(3, 2) / C(4, 2) = 1/2; n = 10, c = 3, k = 4: 1 - 35 / 210 = 5/6. Fewer wrong ones than k
    are drawn: 1. And no large binomials: n = 4000, c = 1, k = 2000 is 1/2."""
    c, n = np.array([0, 1, 2, 3, 4]), np.full(5, 4)
    np.testing.assert_allclose(pass_at_k(c, n, 1), c / 4)
    np.testing.assert_allclose(pass_at_k(c, n, 2), [0, 1 / 2, 5 / 6, 1, 1])
    np.testing.assert_allclose(pass_at_k(c, n, 4), [0, 1, 1, 1, 1])
    assert pass_at_k(np.array([3]), np.array([10]), 4)[0] == pytest.approx(5 / 6)
    assert pass_at_k(np.array([1]), np.array([4000]), 2000)[0] == pytest.approx(0.5)


def test_pass_at_k_is_the_mean_over_every_subset():
    for c in range(8):
        right = [1] * c + [0] * (7 - c)
        for k in range(1, 8):
            expected = np.mean([max(subset) for subset in combinations(right, k)])
            assert pass_at_k(np.array([c]), np.array([7]), k)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "answers", "k", "expected"),
    [
        ([0, 0, 1, 1], ["7", "7", "3", "3"], 4, 1 / 2),  # a tie
        ([1, 0, 0, 0], ["3", "7", "8", "9"], 4, 1 / 4),  # four answers, a vote each
        ([1, 1, 0, 0], ["1/2", "0.5", "7", "8"], 4, 1.0),  # two forms of the right one
        ([0, 0, 0, 1], ["7", "7", None, "3"], 4, 0.0),
        ([0, 0, 0, 1], [None, None, None, "3"], 4, 1.0),  # no answer, no vote
        ([1, 0, 0, 0], [None, "7", None, "8"], 4, 1 / 3),  # right, though its answer could not be named
        ([0, 0], [None, None], 2, 0.0),
        ([1, 1, 0, 0, 1], ["3", "3", "7", "7", "3"], 2, 1 / 2),  # votes of samples 0-1 and 2-3; the fifth is left
        ([1, 0, 0], ["3", "7", "8"], 1, 1 / 3),
    ],
)
def test_majority_votes_by_hand(right, answers, k, expected):
    assert majority_at_k([bool(r) for r in right], answers, k) == pytest.approx(expected)


def test_curves_of_a_sweep_by_hand():
    """Four prompts of 4 samples. base: c = 0, 0, 1, 1; full: 0, 2, 4, 4; layer 0: 0, 0, 4, 4.

    pass@1: 1/8, 10/16, 1/2; pass@2: base (1/2 + 1/2) / 4 = 1/4, full (5/6 + 2) / 4 = 17/24, layer 1/2;
    pass@4: 1/2, 3/4, 1/2. C of the layer: 3/4 at k = 1, (1/4) / (11/24) = 6/11 at k = 2, 0 at k = 4.
    """
    count = lambda c: [1] * c + [0] * (4 - c)  # noqa: E731
    repeat = 8  # so that full's gain is beyond its noise
    made = {"base": [0, 0, 1, 1], "full": [0, 2, 4, 4], "layer-00": [0, 0, 4, 4]}
    found = curves(*(rows(name, [count(c) for c in cs] * repeat) for name, cs in made.items()))
    expected = {"base": [1 / 8, 1 / 4, 1 / 2], "full": [10 / 16, 17 / 24, 3 / 4], "layer-00": [1 / 2, 1 / 2, 1 / 2]}
    for name, values in expected.items():
        np.testing.assert_allclose([found.loc[(name, "pass", k), "value"] for k in (1, 2, 4)], values)
    assert set(found.index.get_level_values("measure")) == {"pass"}  # no answers, no vote
    np.testing.assert_allclose(
        [found.loc[("layer-00", "pass", k), "contribution"] for k in (1, 2, 4)], [3 / 4, 6 / 11, 0.0], atol=1e-12
    )
    sd = np.std([0, 1 / 2, 0, 1 / 2] * repeat, ddof=1)  # base at k = 2
    base = found.loc[("base", "pass", 2)]
    assert base["high"] - base["value"] == pytest.approx(1.959964 * sd / np.sqrt(4 * repeat), rel=1e-6)
    gain = found.loc[("layer-00", "pass", 4)]
    assert (gain["gain"], gain["gain_low"] < 0 < gain["gain_high"] or gain["gain_low"] == gain["gain_high"]) == (
        0,
        True,
    )


def test_the_best_layers_vote_with_a_sample_each():
    """Three prompts of 2 samples; right ones are "r". Ranked 2, 0, 1 by the selection split. Votes of layers 2 and 0,
    sample by sample: r r, r a | a a, a r | a b, r b: 1, 1/2 | 0, 1/2 | 0, 1/2, in all 5/12; of layer 2 alone 3/6."""
    votes = {"layer-02": ["rr", "aa", "ar"], "layer-00": ["ra", "ar", "bb"], "layer-01": ["cc", "cc", "cc"]}
    parts = [rows("base", np.zeros((3, 2)), np.full((3, 2), "c")), rows("full", np.ones((3, 2)), np.full((3, 2), "r"))]
    parts += [
        rows(name, [[a == "r" for a in prompt] for prompt in given], [list(prompt) for prompt in given])
        for name, given in votes.items()
    ]
    ranks = {"layer-02": [1, 1], "layer-00": [1, 0], "layer-01": [0, 0], "base": [0, 0], "full": [1, 1]}
    parts += [rows(name, [right] * 3, split="selection") for name, right in ranks.items()]
    found = curves(*parts).xs("best layers", level="selection")
    assert found["value"].to_dict() == pytest.approx({("maj", 1): 3 / 6, ("maj", 2): 5 / 12})
    assert found["contribution"].isna().sum() == 0 and found["kind"].eq("layers").all()


def test_suites_weigh_alike_and_selections_go_as_far_as_their_samples():
    """Suite a: 4 prompts always right; b: 2 never. Full has 2 samples a prompt, the base 4: no pass@4 of full."""
    base = [rows("base", np.ones((4, 4))), rows("base", np.zeros((2, 4)), suite="b")]
    full = [rows("full", np.ones((4, 2))), rows("full", np.ones((2, 2)), suite="b")]
    found = curves(*base, *full)
    assert {k for _, _, k in found.loc[["full"]].index} == {1, 2}
    assert found.loc[("base", "pass", 4), "value"] == 0.5 and found.loc[("full", "pass", 2), "value"] == 1.0


def test_seeds_are_models_of_their_own():
    """A vote is among one model's samples: two seeds that always give different answers have no tie between them."""
    answers = {0: "3", 1: "7"}
    parts = [rows("full", np.full((5, 2), seed == 0), np.full((5, 2), answers[seed]), seed=seed) for seed in (0, 1)]
    found = curves(rows("base", np.zeros((5, 2)), np.full((5, 2), "7")), *parts)
    assert found.loc[("full", "maj", 2), "value"] == 0.5 and found.loc[("base", "maj", 2), "value"] == 0.0


def test_what_is_not_scored_yet_has_no_curves():
    """Nothing of the split; or no selection on both suites."""
    assert not len(curves(rows("base", np.ones((2, 2))), split="selection"))
    assert not len(curves(rows("base", np.ones((2, 2))), rows("full", np.ones((2, 2)), suite="b")))


def covered(values: np.ndarray, truth: float) -> bool:
    """Whether the interval that a curve has, from the prompts' values, holds the truth."""
    found = intervals.paired([values[None]], [0])
    half = intervals.critical(np.inf) * np.sqrt(found.covariance[0, 0])
    return abs(found.mean[0] - truth) <= half


def test_the_intervals_cover_what_k_samples_of_the_population_reach():
    """150 prompts of difficulties Beta(.6, .9), 8 samples each: the 95 % intervals hold the population's value in 93 to
    97 of 100 evaluations. E (1 - p)^k is the product of (b + j) / (a + b + j), j < k; a vote of 4 with one wrong answer
    is right with P(X > 2) + P(X = 2) / 2, X binomial, integrated over p."""
    rng = np.random.default_rng(3)
    a, b, prompts, samples, trials = 0.6, 0.9, 150, 8, 1500
    p = stats.beta(a, b).ppf((np.arange(20_000) + 0.5) / 20_000)
    truth = {k: 1 - np.prod([(b + j) / (a + b + j) for j in range(k)]) for k in (1, 2, 4)}
    truth["vote"] = float(np.mean(stats.binom.sf(2, 4, p) + stats.binom.pmf(2, 4, p) / 2))
    held = dict.fromkeys(truth, 0)
    for _ in range(trials):
        right = rng.random((prompts, samples)) < rng.beta(a, b, prompts)[:, None]
        c = right.sum(axis=1)
        for k in (1, 2, 4):
            held[k] += covered(pass_at_k(c, np.full(prompts, samples), k), truth[k])
        votes = [majority_at_k(row, np.where(row, "3", "7").tolist(), 4) for row in right.tolist()]
        held["vote"] += covered(np.array(votes), truth["vote"])
    assert all(0.93 <= count / trials <= 0.97 for count in held.values()), held
