"""C by the base's own success: sorting by hand, parts that add up, and no class that favours anybody."""

import numpy as np
import pandas as pd
import pytest

from layersweep.orchestrator.report import write_report
from layersweep.orchestrator.report.base_success import base_success_section
from layersweep.orchestrator.report.results import Results, read
from layersweep.orchestrator.statistics.base_success import (
    CLASSES,
    base_success_table,
    class_weights,
    sort_samples,
)
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.workers.storage.tables import BY_BASE_SUCCESS, CONTRIBUTION, SCORES, STEPS
from tests.helpers.tables import run_facts, selections_in
from tests.orchestrator.statistics.test_suite_table import scores as scores_of_suites

SWEEP = {"sweep": "s", "model": "m", "algorithm": "grpo", "task": "t"}


def scored(by_run: dict[str, list[list[float]]], suite: str = "a", seed: int = 0) -> pd.DataFrame:
    """Scores from [prompts][samples] by selection."""
    rows = [
        {"selection": name, "seed": seed, "step": 0 if name == "base" else 9, "suite": suite, "split": "selection",
         "prompt": f"p{p}", "sample": i, "score": score, "response_tokens": 5, "truncated": False, "format_ok": True}
        for name, prompts in by_run.items() for p, samples in enumerate(prompts) for i, score in enumerate(samples)
    ]  # fmt: skip
    return SCORES.frame(pd.DataFrame(rows))


def shares_of(frame: pd.DataFrame) -> pd.DataFrame:
    """[prompts, classes] shares of the base's samples."""
    base = frame[frame["selection"] == "base"].reset_index(drop=True)
    return class_weights(base, sort_samples(base)).groupby(base["prompt"]).mean()


def test_each_sample_is_sorted_by_the_others():
    """Three samples: 000 never; 111 always; 100: the right one by two wrong ones, never, and each wrong one by a right
    and a wrong one, sometimes; 011 likewise: the wrong one always. A prompt with a single sample is left out."""
    found = sort_samples(scored({"base": [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1], [1]]}))
    assert found.groupby("prompt")["class"].agg(list).to_dict() == {
        "p0": ["never"] * 3,
        "p1": ["always"] * 3,
        "p2": ["never", "sometimes", "sometimes"],
        "p3": ["always", "sometimes", "sometimes"],
    }


def test_a_response_goes_where_the_base_s_of_its_number_goes():
    """Of 100 the first is "never" and the second "sometimes"; a fourth, which the base has not, counts as the base's do
    on the average. A prompt that was not sorted counts nowhere."""
    frame = scored({"base": [[1, 0, 0], [1]], "full": [[0, 0, 0, 1], [1, 1]]})
    full = frame[frame["selection"] == "full"]
    found = class_weights(full, sort_samples(frame[frame["selection"] == "base"]))
    assert found.iloc[[0, 1, 2]].to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert found.iloc[3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert found.iloc[4:].isna().all(axis=None)


def test_scores_gains_and_parts_by_hand():
    """never: p0 wholly, p2 by a third. Base (0 + 1/3) / (4/3) = 1/4; full, right on p0 alone: 1 / (4/3) = 3/4; the
    layer, right on p2 alone: (1/3) / (4/3) = 1/4. Parts, over four prompts: full (1 - 1/3) / 4 = 1/6, the layer 0.
    sometimes: p2 and p3 by two thirds each, the base (2/3) / (4/3) = 1/2."""
    base = [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 1]]
    runs = {"base": base, "full": [[1] * 3, [1] * 3, [0] * 3, [1] * 3],
            "layer-01": [[0] * 3, [1] * 3, [1] * 3, [0] * 3]}  # fmt: skip
    frame = scored(runs)
    table = base_success_table("s", selections_in(frame), frame).set_index(["base_success", "selection"])
    score, part = table["score"], table["gain_part"]
    assert [score["never", name] for name in runs] == pytest.approx([1 / 4, 3 / 4, 1 / 4])
    assert [part["never", name] for name in ("full", "layer-01")] == pytest.approx([1 / 6, 0])
    assert [score["sometimes", name] for name in runs] == pytest.approx([1 / 2, 1 / 2, 1 / 2])
    assert [score["always", name] for name in runs] == pytest.approx([3 / 4, 1, 3 / 4])
    assert table["share"].unstack("selection")["base"].to_dict() == pytest.approx(
        {"never": 1 / 3, "sometimes": 1 / 3, "always": 1 / 3}
    )
    # All classes together: full gains 3/4 - 1/2, the layer 1/2 - 1/2.
    assert part.groupby("selection").sum().to_dict() == pytest.approx({"base": 0, "full": 1 / 4, "layer-01": 0})


def jackknife(values: np.ndarray, shares: np.ndarray) -> float:
    """Standard error of sum(values) / sum(shares), leaving out one prompt at a time: another way to the same error."""
    n = len(values)
    left = np.array([(values.sum() - v) / (shares.sum() - s) for v, s in zip(values, shares, strict=True)])
    return float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))


def test_parts_add_up_and_errors_are_those_of_a_jackknife():
    """Two suites that count and one that does not, two seeds; the gain is contribution.parquet's on the same rows."""
    frame = scores_of_suites(seeds=(0, 1))
    facts = selections_in(frame)
    table = base_success_table("s", facts, frame)
    whole = sweep_table(SWEEP, pd.DataFrame(map(run_facts, facts["selection"])).assign(status="completed", reason=None),
                        STEPS.frame([]), frame).set_index("selection")["score"]  # fmt: skip
    parts = table.groupby("selection")["gain_part"].sum()
    for name in ("full", "layer-00", "layer-01"):
        assert parts[name] == pytest.approx(whole[name] - whole["base"], abs=1e-12)
    one = frame[(frame["suite"] == "a") & (frame["seed"] == 0)]
    found = base_success_table("s", facts, one).set_index(["base_success", "selection"])
    of = {name: one[one["selection"] == name].reset_index(drop=True) for name in ("base", "layer-00")}
    weights = {name: class_weights(rows, sort_samples(of["base"])) for name, rows in of.items()}
    for name in CLASSES:
        values = {run: (rows["score"] * weights[run][name]).groupby(rows["prompt"]).mean() for run, rows in of.items()}
        own = shares_of(one)[name]
        error = jackknife((values["layer-00"] - values["base"]).to_numpy(), own.to_numpy())
        row = found.loc[(name, "layer-00")]
        if own.sum() < 10:  # the few prompts of "always": no interval, as no error could be told from them
            assert name == "always" and row[["gain_low", "contribution"]].isna().all() and pd.notna(row["gain"])
            assert row["contribution_reason"] == "fewer than 10 such prompts"
            continue
        assert (row["gain_high"] - row["gain_low"]) / 2 == pytest.approx(1.96 * error, rel=0.05)


def naive_gain(frame: pd.DataFrame) -> float:
    """Gain of full on prompts of which no sample of the base is right."""
    means = frame.groupby(["selection", "prompt"])["score"].mean().unstack("selection")
    never = means[means["base"] == 0]
    return float((never["full"] - never["base"]).mean())


def test_responses_that_are_the_base_s_own_gain_nothing():
    """Sampled with the same random numbers, a run that stayed the base gives its responses: every gain is exactly 0."""
    draw = (np.random.default_rng(0).random((60, 4)) < 0.4).astype(float).tolist()
    frame = scored({"base": draw, "full": draw})
    table = base_success_table("s", selections_in(frame), frame)
    assert set(table["base_success"]) == set(CLASSES)
    full = table[table["selection"] == "full"]
    assert full["gain"].abs().max() < 1e-12 and full["gain_part"].abs().max() < 1e-12


@pytest.mark.parametrize(("common", "better"), [(False, 0.0), (True, 0.15)], ids=["as good", "common random numbers"])
def test_no_class_favours_anybody(common, better):
    """A run is right as often as the base, or .15 more often, on every prompt: over 20 sweeps its mean gain in each
    class is that within 3.5 standard errors, and intervals hold it about as often as they should. Sorted by the
    samples that give the base's score it would gain much more on "never"."""
    rng = np.random.default_rng(0)
    gains: dict[str, list[float]] = {name: [] for name in CLASSES}
    held, naive = [], []
    for _ in range(20):
        chances = rng.beta(0.5, 0.8, 150)[:, None] * 0.85
        first, second = rng.random((2, 150, 4))
        draw = {"base": first < chances, "full": (first if common else second) < chances + better}
        frame = scored({name: right.astype(float).tolist() for name, right in draw.items()})
        naive.append(naive_gain(frame))
        for row in base_success_table("s", selections_in(frame), frame).to_dict("records"):
            if row["selection"] == "full":
                gains[row["base_success"]].append(row["gain"])
                if pd.notna(row["gain_low"]):
                    held.append(row["gain_low"] <= better + 1e-12 and better - 1e-12 <= row["gain_high"])
    for found in gains.values():
        assert abs(np.mean(found) - better) < 3.5 * np.std(found) / len(found) ** 0.5 + 1e-12
    assert 0.88 <= np.mean(held) <= 1.0
    if not common:
        assert np.mean(naive) > better + 0.04


def test_a_single_sample_sorts_nothing(tmp_path):
    frame = scored({"base": [[0], [1]], "full": [[1], [1]]})
    assert not len(base_success_table("s", selections_in(frame), frame))
    assert base_success_section(Results(CONTRIBUTION.frame(run_table(frame)), STEPS.frame([]), frame, "")) is None


def run_table(frame: pd.DataFrame) -> pd.DataFrame:
    runs = pd.DataFrame(map(run_facts, selections_in(frame)["selection"])).assign(status="completed", reason=None)
    return sweep_table(SWEEP, runs, STEPS.frame([]), frame)


def test_the_report_writes_and_shows_it(tmp_path):
    frame = scores_of_suites()
    for schema, rows in ((CONTRIBUTION, run_table(frame)), (STEPS, STEPS.frame([])), (SCORES, frame)):
        with (tmp_path / f"{schema.name}.parquet").open("wb") as file:
            schema.write(rows, file)
    written = write_report(str(tmp_path))
    assert f"{tmp_path}/contribution_by_base_success.parquet" in written
    table = BY_BASE_SUCCESS.read(f"{tmp_path}/contribution_by_base_success.parquet")
    section = base_success_section(read(str(tmp_path))[0])
    assert [name for name, _ in section["columns"]] == list(CLASSES)
    assert [row["selection"] for row in section["rows"]] == ["base", "full", "layer-00", "layer-01"]
    full = table.set_index(["base_success", "selection"]).loc[("never", "full")]
    assert section["rows"][1]["cells"][0]["value"] == f"+{full['gain']:.3f}"
    page = (tmp_path / "report.html").read_text()
    assert "Something new, or more reliable?" in page and section["sentence"] in page


def test_a_layer_that_stopped_early_is_set_against_full_at_its_own_step():
    """Forty prompts that the base never solves. The layer stopped at step 2 with half of them; full had all of them
    there, and lost half of these by the end: C is 1/2, not 1, and no part of full's gain is counted twice."""
    never, half = [[0, 0, 0]] * 40, [[float(p % 2)] for p in range(40)]
    early = scored({"full": [[1.0]] * 40, "layer-01": half}).assign(step=2)
    frame = SCORES.frame(pd.concat([scored({"base": never, "full": half}), early], ignore_index=True))
    found = base_success_table("s", selections_in(frame), frame).set_index("selection")
    assert found.loc["layer-01", "contribution"] == pytest.approx(0.5)
    assert found.loc["full", "gain_part"] == pytest.approx(0.5)
