"""Contributions, their intervals and ranks, on scores whose figures are worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from layersweep.orchestrator.statistics import intervals
from layersweep.orchestrator.statistics.contribution import contribution_table
from layersweep.orchestrator.statistics.score_arrays import gains_at
from layersweep.orchestrator.statistics.seeds import interval_covers
from tests.helpers.scores import BASE, FULL, LAYER, frame, responses, row, sweep, table_of
from tests.simulations.profiles import PUBLISHED


def test_kind_and_layer_come_from_the_runs_not_from_the_name():
    """A layer run under another name is the same layer; scores that no run has are refused."""
    scores = sweep(base=BASE, full=FULL, layer_03=LAYER)
    runs = pd.DataFrame({"selection": ["base", "full", "layer-03"], "kind": ["base", "full", "layers"], "layer": None})
    assert contribution_table(scores, runs)["kind"].tolist() == ["base", "full", "layers"]
    renamed = scores.replace({"selection": {"layer-03": "third block"}})
    runs = pd.DataFrame(
        {"selection": ["base", "full", "third block"], "kind": ["base", "full", "layer"], "layer": [None, None, 3]}
    )
    found = row(contribution_table(renamed, runs), "third block")
    assert (found["layer"], found["rank"], found["contribution"]) == (3, 1, pytest.approx(0.5))
    with pytest.raises(ValueError, match="no run has: layer-03"):
        contribution_table(scores, runs)


def test_contribution_and_interval_by_hand():
    """Squared deviations of the gains: full 40 * 0.25 = 10, layer 10 * 0.75 = 7.5, products 10 * 0.5 = 5.

    Divided by 39 * 40: var_full .0064103, var_layer .0048077, covariance .0032051. With t^2 = 3.8415:
    a = .25 - .024625 = .225375, b = .125 - .012312 = .112688, c = .0625 - .018469 = .044031,
    root = sqrt(.0126985 - .0099236) = .052678, ends (.112688 -+ .052678) / .225375.
    """
    table = table_of(sweep(base=BASE, full=FULL, layer_03=LAYER))
    layer = row(table, "layer-03")
    assert table["selection"].tolist() == ["base", "full", "layer-03"]
    assert layer["contribution"] == pytest.approx(0.5)
    assert layer["contribution_low"] == pytest.approx(0.26627, abs=1e-4)
    assert layer["contribution_high"] == pytest.approx(0.73373, abs=1e-4)
    assert (layer["kind"], layer["layer"], layer["seeds"], layer["prompts"], layer["step"]) == ("layer", 3, 1, 40, 10)
    assert not layer["imprecise"]
    assert pd.isna(layer["contribution_reason"]) and pd.isna(layer["contribution_note"])
    # score .5 of 40 coins: variance .25 / 39, half-width 1.96 * .080064
    assert layer["score"] == 0.5
    assert layer["score_high"] - layer["score"] == pytest.approx(0.15692, abs=1e-4)
    for name, value in (("base", 0.0), ("full", 1.0)):
        assert row(table, name)[["contribution", "contribution_low", "contribution_high"]].tolist() == [value] * 3


def test_fieller_by_hand():
    """gain 2, full 4, variances 1, no covariance, t 1: 15 C^2 - 16 C + 3 = 0, so C = (8 -+ sqrt 19) / 15."""
    low, high = intervals.fieller(2.0, 4.0, 1.0, 0.0, 1.0, 1.0)
    assert (float(low), float(high)) == pytest.approx(((8 - 19**0.5) / 15, (8 + 19**0.5) / 15))
    low, high = intervals.fieller(np.array([2.0, 0.5]), 1.0, 1.0, 0.0, 1.0, 2.0)
    assert low.tolist() == [-np.inf] * 2 and high.tolist() == [np.inf] * 2
    # a full gain known exactly leaves the plain interval of the layer's: 2/4 -+ 1/4
    assert [float(end) for end in intervals.fieller(2.0, 4.0, 1.0, 0.0, 0.0, 1.0)] == [0.25, 0.75]


def test_seed_variance_by_hand():
    """Run 0: scores 0 and 1 on both prompts, so Var_s = .5 and nothing else varies: .5.

    Run 1: [1, 0] and [1, 1], means .5 and 1, Var_s = .125; residuals +-.25, e = .25 / (1 * 1 * 2) = .125: 0.
    Pooled .25 with 2 degrees of freedom. Full is run 0 at 2 seeds: (2 * .25 + 1 * .5) / 3 / 2 = 1/6.
    """
    suite = np.array([[[0, 0], [1, 1]], [[1, 0], [1, 1]]], dtype=float)
    seed = intervals.seed_variance([suite], [0, 1])
    assert (seed.pooled, seed.dof) == (0.25, 2)
    assert seed.own.tolist() == [0.5, 0]
    assert seed.of_mean(2) == 0.125
    assert seed.of_full(0, 2) == pytest.approx(1 / 6)
    given = intervals.seed_variance([suite[:, :1]], [0, 1], seed_sd=0.1)
    assert given.pooled == pytest.approx(0.01) and given.of_full(0, 1) == pytest.approx(0.01) and np.isinf(given.dof)
    alone = intervals.seed_variance([suite[:, :1]], [0, 1])
    assert alone.pooled == 0 and intervals.critical(alone.dof) == pytest.approx(1.95996, abs=1e-5)


def reference_interval(scores, layer):
    """The definitions of contribution.py in loops over pandas, for balanced data of several suites and seeds."""
    mean = scores.groupby(["selection", "seed", "suite", "prompt"])["score"].mean()
    runs = [name for name in scores["selection"].unique() if name != "base"]
    suites, seeds = sorted(scores["suite"].unique()), sorted(scores["seed"].unique())
    q, s = len(suites), len(seeds)
    gain = {name: 0.0 for name in runs}
    moments = np.zeros((2, 2))
    difference = {name: [0.0] * s for name in runs}
    noise = {name: 0.0 for name in runs}
    for suite in suites:
        base = mean["base", 0, suite]
        n = len(base)
        of = {name: np.array([mean[name, seed, suite].reindex(base.index) for seed in seeds]) for name in runs}
        for name in runs:
            gain[name] += (of[name].mean() - base.mean()) / q
            for index in range(s):
                difference[name][index] += of[name][index].mean() / q
            residual = of[name] - of[name].mean(1, keepdims=True) - of[name].mean(0, keepdims=True) + of[name].mean()
            noise[name] += (residual**2).sum() / ((n - 1) * (s - 1) * n) / q**2
        moments += np.cov([of[layer].mean(0) - base.to_numpy(), of["full"].mean(0) - base.to_numpy()]) / n / q**2
    excess = {name: np.var(difference[name], ddof=1) - noise[name] for name in runs}
    pooled = max(0.0, float(np.mean(list(excess.values()))))
    moments[0, 0] += pooled / s
    moments[1, 1] += (2 * pooled + (s - 1) * max(0.0, excess["full"])) / (s + 1) / s
    t = stats.t.ppf(0.975, len(runs) * (s - 1))
    g, d = gain[layer], gain["full"]
    quadratic = [
        d**2 - t**2 * moments[1, 1],
        -2 * (g * d - t**2 * moments[0, 1]),
        g**2 - t**2 * moments[0, 0],
    ]
    return g / d, *sorted(np.roots(quadratic).real)


def test_interval_of_several_suites_and_seeds_against_loops():
    rng = np.random.default_rng(3)
    parts = []
    for name, shift in {"base": 0.3, "full": 0.6, "layer-00": 0.5, "layer-01": 0.4}.items():
        for seed in range(1 if name == "base" else 3):
            moved = shift + 0.03 * rng.standard_normal()
            for suite, n in {"a": 120, "b": 50}.items():
                for sample in range(2):
                    values = rng.random(n) < moved
                    parts.append(responses(name, values, seed=seed, suite=suite, sample=sample))
    scores = frame(*parts)
    table = table_of(scores.sample(frac=1, random_state=0))
    for layer in ("layer-00", "layer-01"):
        seen = row(table, layer)[["contribution", "contribution_low", "contribution_high"]].tolist()
        assert seen == pytest.approx(reference_interval(scores, layer), rel=1e-9)
    assert row(table, "layer-00")["seeds"] == 3


def test_given_seed_sd_widens_by_its_variance():
    """0.05^2 = .0025 joins var_layer and, (2 * .0025 + 0) / 2 at one seed, var_full."""
    scores = sweep(base=BASE, full=FULL, layer_03=LAYER)
    layer = row(table_of(scores, seed_sd=0.05), "layer-03")
    t2 = 1.959964**2
    v_layer, v_full, shared = 7.5 / 1560 + 0.0025, 10 / 1560 + 0.0025, 5 / 1560
    ends = sorted(np.roots([0.25 - t2 * v_full, -2 * (0.125 - t2 * shared), 0.0625 - t2 * v_layer]))
    assert [layer["contribution_low"], layer["contribution_high"]] == pytest.approx(ends, rel=1e-5)


def test_null_rule_needs_a_gain_of_2_58_standard_errors():
    """Of 40 prompts full gains p: variance p (1 - p) / 39. p = 6/40 gives z = 2.62, p = 5/40 z = 2.36."""
    zero = np.zeros(40)
    gains = {n: np.r_[np.ones(n), np.zeros(40 - n)] for n in (5, 6)}
    shown = table_of(sweep(base=zero, full=gains[6], layer_00=gains[5]))
    assert row(shown, "layer-00")["contribution"] == pytest.approx(5 / 6)
    assert row(shown, "layer-00")["imprecise"]
    null = table_of(sweep(base=zero, full=gains[5], layer_00=gains[6]))
    assert null[["contribution", "contribution_low", "contribution_high"]].isna().all(axis=None)
    assert null["contribution_reason"].str.contains("z = 2.36").all()
    assert row(null, "layer-00")["rank"] == 1


def test_reasons_for_a_null_contribution():
    def reasons(scores):
        return set(table_of(scores)["contribution_reason"])

    assert reasons(sweep(base=BASE)) == {"no full run"}
    assert reasons(sweep(base=BASE, layer_00=LAYER)) == {"no full run"}
    assert reasons(sweep(full=FULL, layer_00=LAYER)) == {"no base scores"}
    (lost,) = reasons(sweep(base=FULL, full=BASE, layer_00=LAYER))
    assert "full run lost 0.5" in lost
    (same,) = reasons(sweep(base=BASE, full=BASE, layer_00=LAYER))
    assert "gained nothing" in same
    (one,) = reasons(sweep(base=[0], full=[1], layer_00=[1]))
    assert "fewer than two prompts" in one


def test_a_run_counts_once_scored_on_every_suite():
    scores = frame(
        *(responses(name, values, suite=s) for s in "ab" for name, values in (("base", BASE), ("full", FULL))),
        responses("layer-00", LAYER, suite="a"),
    )
    table = table_of(scores)
    assert row(table, "layer-00")["contribution_reason"] == "not scored yet on b"
    assert pd.isna(row(table, "layer-00")["score"])
    assert row(table, "full")["contribution"] == 1
    none = table_of(frame(responses("base", BASE, suite="a"), responses("full", FULL, suite="b")))
    assert none["contribution_reason"].tolist() == ["not scored yet on b", "not scored yet on a"]


def test_base_is_shared_by_all_seeds_and_seeds_may_be_missing():
    """Full at seeds 0 and 1 gains .5 and .25 on average .375; the layer, at seed 1 alone, .25: C = 2/3."""
    scores = frame(
        responses("base", BASE),
        responses("full", FULL, seed=0),
        responses("full", LAYER, seed=1),
        responses("layer-00", LAYER, seed=1),
    )
    table = table_of(scores, seed_sd=0.01)
    assert row(table, "layer-00")["contribution"] == pytest.approx(2 / 3)
    assert table["seeds"].tolist() == [1, 2, 1]
    again = table_of(frame(scores, responses("base", BASE, seed=1)), seed_sd=0.01)
    pd.testing.assert_frame_equal(again, table)


def test_suites_weigh_the_same_and_greedy_ones_nothing():
    """Layer gains .25 on the first suite, .5 on the second with half the prompts; full .5 on both: C = .375 / .5."""
    half = slice(0, 20)
    scores = frame(
        *(responses(name, values, suite="a") for name, values in (("base", BASE), ("full", FULL), ("layer-00", LAYER))),
        *(
            responses(name, values[half], suite="b")
            for name, values in (("base", BASE), ("full", FULL), ("layer-00", FULL))
        ),
        *(responses(name, np.ones(40), suite="a@greedy", response_tokens=999) for name in ("base", "full")),
    )
    table = table_of(scores)
    assert row(table, "layer-00")["contribution"] == pytest.approx(0.75)
    assert row(table, "base")["score"] == 0.25
    assert table["response_tokens"].eq(100).all()
    assert table.attrs["suites"] == ["a", "b"]


def test_runs_are_paired_on_the_prompts_they_share():
    """The layer lacks the first two prompts, where full gained 1 each: 9/38 over 18/38."""
    scores = frame(responses("base", BASE), responses("full", FULL), responses("layer-00", LAYER[2:], first=2))
    layer = row(table_of(scores), "layer-00")
    assert layer["contribution"] == pytest.approx(9 / 18)
    assert layer["prompts"] == 38
    missing_in_base = frame(responses("base", BASE[2:], first=2), responses("full", FULL), responses("layer-00", LAYER))
    assert "paired on 38 of 40 prompts" in row(table_of(missing_in_base), "layer-00")["contribution_note"]


def test_a_layer_behind_full_is_set_against_full_at_its_own_step():
    """At step 5 full has gained .25 only, as the layer has: C = 1 there, and it ranks behind the one that finished."""
    scores = frame(
        responses("base", BASE, step=0),
        responses("full", LAYER, step=5),
        responses("full", FULL, step=10),
        responses("layer-00", LAYER, step=5),
        responses("layer-01", LAYER, step=5),
        responses("layer-01", LAYER, step=10),
    )
    table = table_of(scores)
    behind, done = row(table, "layer-00"), row(table, "layer-01")
    assert behind["contribution"] == pytest.approx(1.0)
    assert behind["contribution_note"] == "an extrapolation: scored at step 5 of 10"
    assert done["contribution"] == pytest.approx(0.5)
    assert (done["rank"], behind["rank"]) == (1, 2)
    assert done["p_best"] == 1 and pd.isna(behind["p_best"]) and pd.isna(behind["tied_with_best"])


def test_contribution_untruncated_tells_brevity_from_reasoning():
    """All of the layer's gain is on responses that the base had truncated: on the rest it gained nothing, full .5."""
    base = np.tile([0, 0, 0, 0], 10)
    full = np.tile([1, 1, 1, 0], 10)
    layer = np.tile([1, 0, 0, 0], 10)
    cut = np.tile([True, False, False, False], 10)
    scores = frame(
        responses("base", base, truncated=cut, response_tokens=300),
        responses("full", full),
        responses("layer-00", layer, format_ok=np.tile([True, False], 20)),
    )
    table = table_of(scores)
    found = row(table, "layer-00")
    assert found["contribution"] == pytest.approx(1 / 3)
    assert found["contribution_untruncated"] == pytest.approx(0.0)
    assert found["format_fraction"] == 0.5
    assert row(table, "base")[["truncated_fraction", "response_tokens"]].tolist() == [0.25, 300]


def test_unknown_format_stays_unknown():
    scores = sweep(base=BASE, full=FULL, layer_00=LAYER)
    scores["format_ok"] = pd.array([None] * len(scores), dtype="boolean")
    table = table_of(scores)
    assert table["format_fraction"].isna().all() and table["truncated_fraction"].eq(0).all()


def test_ranks_ties_and_probabilities():
    """Two layers alike to the prompt are tied for certain; the one far behind is neither tied nor likely."""
    bad = np.tile([0, 0, 0, 0], 10)
    table = table_of(sweep(base=BASE, full=FULL, layer_00=FULL, layer_01=FULL, layer_02=bad), top=2)
    layers = table[table["kind"] == "layer"].set_index("layer")
    assert layers["rank"].tolist() == [1, 2, 3]
    assert layers["tied_with_best"].tolist() == [True, True, False]
    assert layers["p_best"].sum() == pytest.approx(1) and layers["p_top"].sum() == pytest.approx(2)
    assert layers.loc[2, "p_best"] < 0.02
    assert table.loc[table["kind"] != "layer", ["rank", "p_best", "tied_with_best"]].isna().all(axis=None)


def test_contribution_sd_leaves_out_what_all_layers_share():
    """Two layers that differ by the same on every prompt cannot swap ranks, however noisy the base: 0."""
    rng = np.random.default_rng(0)
    base, full = rng.random(40), rng.random(40) + 2
    table = table_of(sweep(base=base, full=full, layer_00=full - 0.5, layer_01=full - 1))
    layers = table[table["kind"] == "layer"]
    assert layers["contribution_sd"].to_numpy() == pytest.approx([0, 0], abs=1e-9)
    assert (layers["contribution_high"] - layers["contribution_low"]).gt(0.01).all()


def test_gains_at_a_rung_by_hand():
    """Gains .25 and .5 with the covariances worked out above, in the order asked for; later steps are not looked at."""
    scores = frame(
        responses("base", BASE, step=0, split="selection"),
        responses("layer-00", LAYER, step=5, split="selection"),
        responses("layer-01", FULL, step=5, split="selection"),
        responses("layer-01", BASE, step=10, split="selection"),
    )
    found = gains_at(scores, ["layer-01", "layer-00"], 5)
    assert found.mean == pytest.approx([0.5, 0.25]) and found.prompts == 40
    assert found.covariance == pytest.approx(np.array([[10, 5], [5, 7.5]]) / 1560)
    assert gains_at(scores, ["layer-01"], 5, seed_sd=0.1).covariance == pytest.approx(10 / 1560 + 0.01)
    with pytest.raises(ValueError, match="layer-00 at step 10"):
        gains_at(scores, ["layer-00", "layer-01"], 10)
    with pytest.raises(ValueError, match="base at step 0"):
        gains_at(scores.iloc[40:], ["layer-00"], 5)
    with pytest.raises(ValueError, match="nothing was scored at step 11"):
        gains_at(scores, ["layer-00"], 11)


def test_sentence_about_the_interval():
    assert "another RL seed may differ" in table_of(sweep(base=BASE, full=FULL)).attrs["interval_covers"]
    assert "0.02" in interval_covers(1, 0.02) and "3 trained" in interval_covers(3)


def test_selection_and_final_prompts_are_kept_apart():
    scores = sweep(base=BASE, full=FULL, layer_00=LAYER)
    mixed = frame(scores, responses("layer-00", FULL, split="selection"), responses("base", BASE, split="selection"))
    pd.testing.assert_frame_equal(table_of(mixed), table_of(scores))
    assert table_of(mixed, split="selection")["selection"].tolist() == ["base", "layer-00"]


def test_bad_tables_are_refused_and_empty_ones_answered():
    scores = sweep(base=BASE, full=FULL)
    with pytest.raises(ValueError, match="recorded twice"):
        table_of(frame(scores, scores))
    with pytest.raises(ValueError, match="lack the columns score"):
        table_of(scores.drop(columns="score"))
    with pytest.raises(ValueError, match="split"):
        table_of(scores, split="test")
    with pytest.raises(ValueError, match="have no score"):
        table_of(scores.assign(score=np.nan))
    empty = table_of(scores.iloc[:0])
    assert len(empty) == 0 and empty.columns.tolist() == table_of(scores).columns.tolist()


def test_table_survives_parquet(tmp_path):
    table = table_of(sweep(base=BASE, full=FULL, layer_00=LAYER))
    table.to_parquet(tmp_path / "contribution.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "contribution.parquet"), table)


def test_published_contributions_from_the_four_benchmarks():
    """One prompt-level row per benchmark, whose score is the published mean: C is a ratio of means over suites."""
    table = pd.read_csv(PUBLISHED)
    parts = []
    for _, line in table.iterrows():
        name = line["setting"].lower() if pd.isna(line["layer"]) else f"layer-{int(line['layer']):02d}"
        for suite in ("math500", "gsm8k", "olympiad", "amc"):
            parts.append(responses(name, [line[suite] - 0.01, line[suite] + 0.01], suite=suite))
    found = table_of(frame(*parts)).set_index("layer").loc[0:]
    assert np.abs(found["contribution"] - table.dropna().set_index("layer")["c_math"]).max() < 0.02
    assert set(found.nsmallest(5, "rank").index) == {10, 12, 9, 2, 13}


def test_degrees_of_freedom_by_hand():
    """4^2 / (2^2 / 2 + 1^2 / 4) = 7.11 where 1 of 4 is known; all of them known, the normal's; and no fewer than the
    least part has: 1^2 / (2^2 / 3) would be .75."""
    assert intervals.effective_dof(4.0, [(2.0, 2.0), (1.0, 4.0)]) == pytest.approx(16 / 2.25)
    assert np.isinf(intervals.effective_dof(4.0, [(0.0, 2.0), (1.0, np.inf)]))
    assert intervals.effective_dof(1.0, [(2.0, 3.0)]) == 3.0
