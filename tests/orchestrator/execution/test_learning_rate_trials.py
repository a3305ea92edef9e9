"""Learning rates by trial: the spec, the trials it plans, and which rate is chosen."""

import numpy as np
import pandas as pd
import pytest

from layersweep.orchestrator.execution.learning_rate_trials import choose, learning_rates_of
from layersweep.orchestrator.execution.manifest import SweepManifest, manifest_file
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.plan import Run
from layersweep.orchestrator.report.curve_charts import curves
from layersweep.orchestrator.report.findings import rates as said_of_rates
from layersweep.orchestrator.report.results import Results
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.orchestrator.statistics.intervals import MeanAndCovariance
from layersweep.policies.selection import Selection
from layersweep.workers.config import LearningRates, LearningRateTuning
from layersweep.workers.storage.run_store import CheckpointRecord, RunStore
from tests.helpers.scores import BASE, FULL, LAYER, frame, responses, table_of
from tests.helpers.specs import demo

TUNING = {"tune": [1e-3, 1e-4, "1e-5"], "steps": 10}


def tuned_demo(**changes):
    return parse_spec(demo(training__learning_rate=TUNING | changes))


@pytest.mark.parametrize(
    ("rate", "expected", "policy"),
    [
        (5e-6, LearningRates(layer=5e-6, full=5e-6), "shared"),
        ("5e-6", LearningRates(layer=5e-6, full=5e-6), "shared"),  # as YAML 1.1 reads a number without a point
        ({"layer": 1e-3, "full": 3e-4}, LearningRates(layer=1e-3, full=3e-4), "by kind"),
        (TUNING, LearningRateTuning(tune=(1e-3, 1e-4, 1e-5), steps=10), "tuned for full"),
        (TUNING | {"reuse": "per_kind"}, LearningRateTuning(tune=(1e-3, 1e-4, 1e-5), steps=10, reuse="per_kind"),
         "tuned per kind"),
    ],
)  # fmt: skip
def test_forms_of_a_learning_rate(rate, expected, policy):
    spec = parse_spec(demo(training__learning_rate=rate))
    assert spec.training.learning_rate == expected and expected.policy == policy
    assert parse_spec(spec.model_dump(mode="json")) == spec  # as sweep.yaml keeps it


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ({"tune": [1e-3], "steps": 10}, "learning_rate.tune: needs at least 2 in its list"),
        ({"tune": [1e-3, -1e-3], "steps": 10}, "learning_rate.tune[1]: input should be greater than 0"),
        ({"tune": [1e-3, 1e-3], "steps": 10}, "learning_rate.tune: names a learning rate twice"),
        ({"tune": [1e-3, 1e-4]}, "learning_rate.steps: required"),
        (TUNING | {"tunes": [1e-3]}, "learning_rate.tunes: unknown key. Did you mean tune?"),
        (TUNING | {"reuse": "layer"}, "learning_rate.reuse: 'layer' is not 'full' or 'per_kind'"),
        (TUNING | {"steps": 3}, "a trial of 3 steps must end after the warm-up (3) and within steps 30"),
        (TUNING | {"steps": 31}, "a trial of 31 steps must end after the warm-up (3) and within steps 30"),
        ({"lyer": 1e-3}, "learning_rate.lyer: unknown key. Did you mean layer?"),
    ],
)
def test_bad_learning_rates(rate, expected):
    with pytest.raises(SpecError) as error:
        parse_spec(demo(training__learning_rate=rate))
    assert len(error.value.problems) == 1 and expected in error.value.problems[0]


def test_rates_cannot_be_tried_on_a_full_run_that_is_not_wanted():
    with pytest.raises(SpecError, match="set include_full to true"):
        parse_spec(demo(training__learning_rate=TUNING, include_full=False))


def test_the_trials_of_the_demo():
    """Three rates on the full run, and per kind on layer 2 too, the lower of the two in the middle of six."""
    names = ["full@lr-1e-05", "full@lr-0.0001", "full@lr-0.001"]
    plan = make_plan(tuned_demo())
    assert [run.selection.name for run in plan.trials] == names
    assert [run.learning_rate for run in plan.trials] == [1e-5, 1e-4, 1e-3]
    assert all(run.selection.trains_all and run.seed == 0 for run in plan.trials)
    both = make_plan(tuned_demo(reuse="per_kind")).trials
    assert [run.selection.name for run in both[3:]] == [name.replace("full", "layer-02") for name in names]
    assert {run.selection.layers for run in both[3:]} == {(2,)}
    assert make_plan(parse_spec(demo())).trials == ()


def test_trials_cost_what_they_generate():
    """A batch is 32 prompts x 8. Seven runs take 30 steps and three trials 10, the first batch once for all of them:
    7 * 29 + 3 * 9 + 1 batches. The base, three trials and seven runs are scored on 512 prompts x 4; in the end base,
    full and three finalists on 128 x 4 x 4."""
    plan = make_plan(tuned_demo())
    assert plan.training_responses == 32 * 8 * (7 * 29 + 3 * 9 + 1)
    assert plan.evaluation_responses == 512 * 4 * (1 + 3 + 7) + 128 * 4 * 4 * 5


def estimate(means, variance, covariance):
    size = len(means)
    return MeanAndCovariance(
        np.array(means), np.full((size, size), covariance) + (variance - covariance) * np.eye(size), 100
    )


@pytest.mark.parametrize(
    ("covariance", "expected"),
    [
        # The difference to the best has the variance 0.0004 + 0.0004 - 2 * covariance, and there is 0.01 and 0.04.
        (0.00039, 1e-5),  # standard error 0.0045
        (0.0003, 3e-6),  # 0.0141
        (0.0, 3e-6),  # 0.0283
        (-0.00045, 1e-6),  # 0.0412
    ],
)
def test_the_smallest_rate_within_a_standard_error_of_the_best(covariance, expected):
    assert choose([1e-6, 3e-6, 1e-5], estimate([0.50, 0.53, 0.54], 0.0004, covariance)) == expected


def test_a_worse_higher_rate_is_never_chosen():
    assert choose([1e-6, 1e-5], estimate([0.54, 0.53], 1.0, 0.0)) == 1e-6
    assert choose([1e-5, 1e-6], estimate([0.53, 0.54], 1e-9, 0.0)) == 1e-6


def test_one_prompt_has_no_error_and_the_best_is_chosen():
    assert choose([1e-6, 1e-5], estimate([0.5, 0.6], np.nan, np.nan)) == 1e-5


def trial(selection: Selection, rate: float) -> Run:
    return Run(Selection(f"{selection.name}@lr-{rate:g}", selection.kind, selection.layers), 0, rate)


def test_rates_from_scores():
    """On 40 prompts FULL solves 10 more than LAYER, which solves 10 more than BASE. Each of those differences is 0.25
    with the variance 0.1875 * 40 / 39 over prompts: a standard error of 0.069, so no two are near each other."""
    full = [trial(Selection.full(), rate) for rate in (1e-6, 1e-5, 1e-4)]
    layer = [trial(Selection.layer(2), rate) for rate in (1e-6, 1e-5)]
    values = dict(zip([run.selection.name for run in full + layer], [BASE, FULL, LAYER, FULL, LAYER], strict=True))
    scores = frame(
        responses("base", BASE, step=0, split="selection"),
        *(responses(name, own, step=10, split="selection") for name, own in values.items()),
    )
    for_full, per_kind = (LearningRateTuning(tune=(1e-6, 1e-5), steps=10, reuse=r) for r in ("full", "per_kind"))
    assert learning_rates_of(for_full, full, scores) == LearningRates(full=1e-5, layer=1e-5)
    assert learning_rates_of(per_kind, full + layer, scores) == LearningRates(full=1e-5, layer=1e-6)
    assert learning_rates_of(for_full, [full[0], full[2]], scores).full == 1e-4  # the best one has failed
    with pytest.raises(ValueError, match="every trial of a learning rate for layer runs failed"):
        learning_rates_of(per_kind, full, scores)


def test_a_trial_has_a_score_and_is_no_layer_run():
    """C of the layer is 0.5 with and without trials in the table; a trial has a score, no C and no rank."""
    runs = [responses("base", BASE, step=0), responses("full", FULL), responses("layer-00", LAYER)]
    trials = [responses("full@lr-0.001", LAYER, step=5), responses("layer-00@lr-0.001", FULL, step=5)]
    table = table_of(frame(*runs, *trials)).set_index("selection")
    pd.testing.assert_frame_equal(table.iloc[:3], table_of(frame(*runs)).set_index("selection"))
    assert table.loc["layer-00", "contribution"] == pytest.approx(0.5)
    own = table.iloc[3:]
    assert own["kind"].tolist() == ["trial"] * 2 and own["layer"].isna().all() and own["rank"].isna().all()
    assert own["score"].tolist() == [0.5, 0.75] and own["contribution"].isna().all()
    assert own["contribution_reason"].tolist() == ["a trial of a learning rate"] * 2


def test_a_report_tells_trials_from_runs():
    """A trial is no run over several layers and has no learning curve; how the rates were found is said."""
    names = ["full", "layer-00", "full@lr-0.001", "full@lr-0.01"]
    table = pd.DataFrame({
        "selection": names, "kind": ["full", "layer", "trial", "trial"], "learning_rate": [1e-3, 1e-3, 1e-3, 1e-2],
        "score": 0.5, "learning_rate_policy": "tuned for full", "status": "completed", "update_norm": 0.5,
    })  # fmt: skip
    steps = pd.DataFrame({"selection": names, "step": 0, "loss": 1.0})
    results = Results(table, steps, pd.DataFrame(), "")
    assert not len(results.several) and list(curves(results, "loss")) == ["layer-00", "full"]
    assert said_of_rates(results) == (
        "Every run has the learning rate 0.001 (tuned for full, by 2 trials); another changes the ranking."
    )


def test_rates_found_are_there_after_a_restart(tmp_path):
    written = SweepManifest(manifest_file(str(tmp_path)), {}, {}, {})
    written.record_learning_rates({"layer": 1e-5, "full": 1e-6})
    assert SweepManifest.load(str(tmp_path)).rates == {"layer": 1e-5, "full": 1e-6}


def test_a_trial_gives_its_weights_back_and_keeps_its_rows(tmp_path):
    store = RunStore(str(tmp_path), "full@lr-0.001-seed0")
    checksum = store.write_file(2, "rank-0.safetensors", lambda file: file.write(b"weights"))
    record = CheckpointRecord(2, {"rank-0.safetensors": checksum}, [{"step": 0}, {"step": 1}], 3.0)
    store.commit(record, keep=1)
    store.delete_weights()
    assert not list(tmp_path.rglob("rank-*")) and store.records() == ([record], [])
