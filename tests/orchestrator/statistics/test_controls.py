"""Controls in the tables: rows of their own, and nothing of the others' changes by a bit."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from layersweep.orchestrator.report import write_report
from layersweep.orchestrator.report.controls import control_section
from layersweep.orchestrator.report.findings import headline
from layersweep.orchestrator.report.results import Results, read
from layersweep.orchestrator.statistics import intervals
from layersweep.orchestrator.statistics.contribution import contribution_table
from layersweep.orchestrator.statistics.contribution_table import sweep_table, table_problem
from layersweep.orchestrator.statistics.layer_profile import profile
from layersweep.orchestrator.statistics.null_controls import null_sentence
from layersweep.orchestrator.statistics.seeds_needed import seeds_needed
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.workers.storage.tables import CONTRIBUTION, SCORES, STEPS
from tests.simulations.control_coverage import Controls, coverage, judge

SWEEP = {"sweep": "s", "model": "m", "algorithm": "grpo", "task": "t", "learning_rate_policy": "by kind",
         "model_layers": 3}  # fmt: skip
RATES = {"base": 0.2, "full": 0.7, "layer-00": 0.4, "layer-01": 0.65, "layer-02": 0.3}
CONTROLS = {
    "layer-01@random-reward": ("random_reward", "layer-01", 0.2),
    "layer-01@rate-x3": ("learning_rate", "layer-01", 0.9),
    "full@rate-x0.3": ("learning_rate", "full", 0.6),
    "layer-02@random-direction": ("random_direction", "layer-02", 0.2),
}
FACTORS = {"layer-01@rate-x3": 3, "full@rate-x0.3": 0.3}
SCORED = {**RATES, **{name: rate for name, (_, _, rate) in CONTROLS.items()}}


@pytest.fixture(scope="module")
def tables():
    """Runs, steps and scores: 60 prompts, 4 samples, two seeds; a control has three times the others' best score."""
    rng = np.random.default_rng(5)
    runs, scores, steps = [], [], []
    for name, rate in SCORED.items():
        control, of, _ = CONTROLS.get(name, (None, None, None))
        of_layer = (of or name) if "layer" in (of or name) else None
        kind = "control" if control else name if name in ("base", "full") else "layer"
        for seed in (0, 1) if name != "base" else (0,):
            runs.append(
                {"selection": name, "seed": seed, "kind": kind, "layer": int(of_layer[-2:]) if of_layer else None,
                 "depth": None, "layers": None, "trainable_parameters": 9, "seconds": 1.0, "status": "completed",
                 "learning_rate": None if name == "base" else 1e-3 * FACTORS.get(name, 1), "reason": None,
                 "control": control, "control_of": of, "change_norm": 2.5 if "direction" in name else None}
            )  # fmt: skip
            if name != "base" and "direction" not in name:
                steps.append({"selection": name, "seed": seed, "step": 0, "tokens": 1, "update_norm": 1.5})
            scores += [
                {"selection": name, "seed": seed, "step": 0 if name == "base" else 9, "suite": "s", "split": split,
                 "prompt": f"{split}-{prompt}", "sample": sample, "response_tokens": 5, "truncated": False,
                 "format_ok": True, "score": float(rng.random() < rate)}
                for split in ("selection", "final") for prompt in range(60) for sample in range(4)
            ]  # fmt: skip
    return pd.DataFrame(runs), STEPS.frame(steps), SCORES.frame(pd.DataFrame(scores))


def without(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[~frame["selection"].isin(CONTROLS)].reset_index(drop=True)


def test_a_control_changes_nothing_of_the_others(tables):
    """Score, interval, C, rank, probabilities, seeds to come, and by suite: bit for bit what they are without."""
    runs, steps, scores = tables
    bare = [without(frame) for frame in tables]
    table, alone = sweep_table(SWEEP, runs, steps, scores), sweep_table(SWEEP, *bare)
    assert list(table["selection"]) == list(SCORED) and table_problem(table) is None
    pd.testing.assert_frame_equal(without(table), alone, check_exact=True)
    assert alone["rank"].notna().sum() == 3 and table["rank"].notna().sum() == 3
    by_suite, alone_by_suite = suite_table("s", runs, scores), suite_table("s", bare[0], bare[2])
    pd.testing.assert_frame_equal(without(by_suite), alone_by_suite, check_exact=True)
    assert set(CONTROLS) <= set(by_suite["selection"])
    assert seeds_needed(scores, table) == seeds_needed(bare[2], alone)
    np.testing.assert_array_equal(profile(table, "s").layers, [0, 1, 2])
    results = [Results(frame, steps, scores, "") for frame in (table, alone)]
    assert headline(results[0]) == headline(results[1])  # though a control has the highest score


def test_a_control_s_own_row(tables):
    """C by the means themselves; what was not trained has its change's norm, and no steps."""
    runs, steps, scores = tables
    table = sweep_table(SWEEP, runs, steps, scores).set_index("selection")
    means = scores[scores["split"] == "selection"].groupby("selection")["score"].mean()
    for name, (control, of, _) in CONTROLS.items():
        row = table.loc[name]
        expected = (means[name] - means["base"]) / (means["full"] - means["base"])
        assert row["contribution"] == pytest.approx(expected) and row["contribution_low"] < expected
        assert (row["kind"], row["control"], row["control_of"]) == ("control", control, of)
        assert pd.isna(row["rank"]) and pd.isna(row["p_best"])
    assert table.loc["layer-02@random-direction", "update_norm"] == 2.5
    assert table.loc["layer-01@rate-x3", "update_norm"] == table.loc["layer-01", "update_norm"] == 1.5
    assert pd.isna(table.loc["layer-02@random-direction", "steps"])


def test_the_report_s_controls(tables, tmp_path):
    """The share of the run's own gain is a ratio of means; C by rate has a row for each selection with a ladder, the
    run itself at x 1."""
    runs, steps, scores = tables
    table = sweep_table(SWEEP, runs, steps, scores)
    section = control_section(Results(table, steps, scores, ""))
    means = scores[scores["split"] == "selection"].groupby("selection")["score"].mean()
    rows = {row["selection"]: row for row in section["rows"]}
    assert list(rows) == list(CONTROLS)
    kept = (means["layer-01@rate-x3"] - means["base"]) / (means["layer-01"] - means["base"])
    assert rows["layer-01@rate-x3"]["kept"].startswith(f"{kept:.2f} (")
    c = table.set_index("selection")["contribution"]
    assert rows["layer-01@random-reward"]["of_c"].startswith(f"{c['layer-01']:.2f} (")
    assert section["ladder"]["factors"] == ["× 0.3", "× 1", "× 3"]
    shown = {name: [value for value, _, _ in cells] for name, cells in section["ladder"]["rows"]}
    assert shown == {
        "layer-01": ["–", f"{c['layer-01']:.2f}", f"{c['layer-01@rate-x3']:.2f}"],
        "full": [f"{c['full@rate-x0.3']:.2f}", "1.00", "–"],
    }
    for schema, frame in ((CONTRIBUTION, table), (STEPS, steps), (SCORES, scores)):
        with (tmp_path / f"{schema.name}.parquet").open("wb") as file:
            schema.write(schema.frame(frame), file)
    write_report(str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert '<section id="controls">' in page and "random direction" in page and null_sentence(table) in page
    assert control_section(read(str(tmp_path))[0]) == section


def test_the_sentence_counts_what_should_gain_nothing():
    """Two of four have 0 within their interval; a ladder is no such control, and one without C is not counted."""
    rows = [
        {"selection": "a", "kind": "control", "control": "random_reward", "contribution": 0.1, "contribution_low": -0.1,
         "contribution_high": 0.3},
        {"selection": "b", "kind": "control", "control": "random_direction", "contribution": 0.0,
         "contribution_low": 0.0, "contribution_high": 0.0},
        {"selection": "c", "kind": "control", "control": "constant_reward", "contribution": 0.2,
         "contribution_low": 0.1, "contribution_high": 0.3},
        {"selection": "g", "kind": "control", "control": "random_reward", "contribution": -0.9,
         "contribution_low": -1.2, "contribution_high": -0.5},
        {"selection": "d", "kind": "control", "control": "learning_rate", "contribution": 0.9, "contribution_low": 0.8,
         "contribution_high": 1.0},
        {"selection": "e", "kind": "control", "control": "random_reward", "contribution": None},
        {"selection": "f", "kind": "layer", "control": None, "contribution": 0.0, "contribution_low": -1.0,
         "contribution_high": 1.0},
    ]  # fmt: skip
    said = null_sentence(pd.DataFrame(rows))
    assert said.endswith("of C: 2 of 4; gained c; lost g.")
    assert null_sentence(pd.DataFrame(rows[4:])) == ""
    assert null_sentence(pd.DataFrame(rows[:2])).endswith("of C: 2 of 2.")


def test_tables_without_controls_have_no_section(tables):
    bare = [without(frame) for frame in tables]
    assert control_section(Results(sweep_table(SWEEP, *bare), bare[1], bare[2], "")) is None
    old = bare[0].drop(columns=["control", "control_of", "change_norm"])  # runs of an earlier version
    assert sweep_table(SWEEP, old, *bare[1:])["control"].isna().all()
    assert contribution_table(tables[2], tables[0], split="final")["kind"].eq("control").sum() == 4


def untrained_controls(control):
    """40 prompts, of which the base has every fourth right; on every prompt full gains .5 with either seed, a layer .1
    and .25, the control `a` 0 and .2, and `b` nothing."""
    base = np.tile([0.0, 0, 0, 1], 10)
    full = base + 0.5
    runs = {
        ("base", 0): base, ("full", 0): full, ("full", 1): full, ("layer-00", 0): base + 0.1,
        ("layer-00", 1): base + 0.25, ("a", 0): base, ("a", 1): base + 0.2, ("b", 0): base, ("b", 1): base,
    }  # fmt: skip
    scores = pd.concat(
        pd.DataFrame({"selection": name, "seed": seed, "step": 0, "suite": "s", "split": "final", "sample": 0,
                      "prompt": [str(i) for i in range(40)], "score": values})
        for (name, seed), values in runs.items()
    )  # fmt: skip
    kinds = {"base": "base", "full": "full", "layer-00": "layer", "a": "control", "b": "control"}
    known = pd.DataFrame({"selection": kinds.keys(), "kind": kinds.values(), "layer": [None, None, 0, None, None],
                          "control": [None, None, None, control, control]})  # fmt: skip
    return contribution_table(scores, known).set_index("selection")


@pytest.mark.parametrize("control", ["random_direction", "constant_reward"])
def test_an_untrained_control_s_interval_by_hand(control):
    """Draws: `a` varies by .02 between seeds, `b` by 0, no evaluation noise in either: pooled .01, 2 degrees of
    freedom, .005 of a mean of two.

    Score of `a`: .35, variance of the base's .0048077 (.1875 / 39) and .005, .0098077; degrees of freedom
    .0098077^2 / (.005^2 / 2) = 7.6953. C: .1 / .5 = .2; the gain varies by .005, that of full by its seeds alone,
    .001875 (the runs' pooled .005625, two parts in three, of a mean of two); the ratio's numerator by .005 + .2^2 *
    .001875 = .005075, of which full's seeds are .000075, with 2 degrees of freedom: .005075^2 / (.005^2 / 2 +
    .000075^2 / 2) = 2.05999. Fieller with that t.
    """
    table = untrained_controls(control)
    half = stats.t.ppf(0.975, 7.6953) * 0.0098077**0.5
    assert table.loc["a", "score_high"] - 0.35 == pytest.approx(half, rel=1e-4)
    assert table.loc["a", "contribution"] == pytest.approx(0.2)
    low, high = intervals.fieller(0.1, 0.5, 0.005, 0.0, 0.001875, stats.t.ppf(0.975, 2.05999))
    ends = table.loc["a", ["contribution_low", "contribution_high"]]
    assert [float(end) for end in ends] == pytest.approx([float(low), float(high)], rel=1e-3)


def test_other_controls_have_the_runs_variance():
    """Full varies by 0 and the layer by .01125 between seeds: pooled .005625, .0028125 of a mean of two, and the t of
    2 degrees of freedom."""
    table = untrained_controls("random_reward")
    half = stats.t.ppf(0.975, 2) * (0.1875 / 39 + 0.0028125) ** 0.5
    assert table.loc["a", "score_high"] - 0.35 == pytest.approx(half)
    assert table.loc["layer-00", "score_high"] - 0.425 == pytest.approx(half)


@pytest.mark.parametrize(
    "world",
    [Controls(), Controls(count=1, seeds=5, draw_sd=0.3), Controls(count=1, draw_sd=0.0, draw_prompt_sd=0.0)],
)
def test_their_intervals_cover(world):
    """Of 95 %: 93 to 97."""
    score, contribution, _ = coverage(world, 1000)
    assert 0.93 <= score <= 0.97 and 0.93 <= contribution <= 0.97


@pytest.mark.parametrize("control", ["random_direction", "random_reward"])
def test_the_simulation_judges_as_the_table_does(control):
    world = Controls(count=2, prompts=30)
    suite = world.sweep(np.random.default_rng(1))
    names = ["a", "b", "layer-00", "layer-01", "layer-02", "full", "base"]
    scores = pd.concat(
        pd.DataFrame({"selection": name, "seed": seed, "step": 0, "suite": "s", "split": "final", "sample": 0,
                      "prompt": [str(i) for i in range(30)], "score": suite[run, seed]})
        for run, name in enumerate(names) for seed in range(3 if name != "base" else 1)
    )  # fmt: skip
    kinds = ["control"] * 2 + ["layer"] * 3 + ["full", "base"]
    known = pd.DataFrame({"selection": names, "kind": kinds, "layer": [None, None, 0, 1, 2, None, None],
                          "control": [control] * 2 + [None] * 5})  # fmt: skip
    table = contribution_table(scores, known).set_index("selection").loc[["a", "b"]]
    ends = table[["score_low", "score_high", "contribution_low", "contribution_high"]].to_numpy(float)
    np.testing.assert_allclose(ends, judge(suite, own=control == "random_direction"), rtol=1e-9)
