"""Going on with a sweep: what may be added, what is refused, and that only what is missing is done."""

import json
import os
import shutil

import pandas as pd
import pytest
import yaml

from layersweep.cli import DEMO, main
from layersweep.orchestrator.execution.launch import write_spec
from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.execution.step_checks import steps_without_reward
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.load import parse_spec
from tests.helpers.chaos import Processes, spec, start
from tests.helpers.model_folders import edit_weights, make


def write(path, data) -> str:
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture
def begun(tmp_path):
    """A sweep over a local model and local data that has begun and done nothing yet: its spec, as plain data."""
    model = tmp_path / "model"
    make(model, num_hidden_layers=6)
    rows = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = yaml.safe_load(open(DEMO)) | {
        "model": str(model),
        "task": {"type": "math", "data": {"path": str(tmp_path / "rows.jsonl"), "prompt_format": "plain"}},
        "layers": [1, 4],
        "seeds": [0],
        "output": str(tmp_path / "out"),
        "evaluation": {"suites": [{"name": "m", "prompts": 1}]},
    }
    data["training"] |= {"prompts_per_step": 2, "minibatches": 1}
    plan = make_plan(parse_spec(data))
    write_spec(plan)
    SweepManifest.begin(plan)
    return data


def changed(data: dict, changes: dict) -> dict:
    """The changed fields of a section replace those of the section."""
    both = {k: data[k] | v if isinstance(v, dict) and isinstance(data.get(k), dict) else v for k, v in changes.items()}
    return data | both


def refusal(begun, tmp_path, capsys, **changes) -> str:
    """What `resume` says to a changed spec."""
    assert main(["resume", str(tmp_path / "out/demo"), write(tmp_path / "changed.yaml", changed(begun, changes))]) == 2
    return capsys.readouterr().err


def test_a_changed_learning_rate_is_refused_with_both_values(begun, tmp_path, capsys):
    said = refusal(begun, tmp_path, capsys, training={"learning_rate": {"layer": 2e-3, "full": 3e-4}})
    assert "training.learning_rate.layer: the sweep began with 0.001, the spec has 0.002" in said
    assert "learning_rate.full" not in said


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"algorithm": {"type": "dr_grpo"}}, "algorithm.type: the sweep began with grpo, the spec has dr_grpo"),
        ({"layers": [4]}, "layers: [1] belong to the sweep"),
        ({"seeds": [1]}, "seeds: the sweep began with [0]"),
        ({"training": {"steps": 19}}, "training.steps: 20 were asked for before"),
        ({"training": {"steps": 40, "schedule": "cosine"}}, "training.schedule: the sweep began with constant"),
        ({"evaluation": {"suites": [{"name": "m", "prompts": 2}]}}, "evaluation.suites"),
        ({"rollout": {"dtype": "bfloat16"}}, "rollout.dtype"),
        ({"include_full": False}, "include_full"),
        ({"layers": {"search": {"budget": 0.9}}}, "layers: a search is planned around it"),
        ({"name": "other"}, "name: "),
    ],
)
def test_what_would_mix_two_experiments_is_refused(begun, tmp_path, capsys, changes, field):
    assert field in refusal(begun, tmp_path, capsys, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "all"}, {"seeds": [0, 1]}, {"training": {"steps": 40}}, {"combine": [{"only": "best 2"}]},
        {"rollout": {"batching": "swap"}}, {"recovery": {"retries": 9}}, {"training": {"micro_batch_tokens": 64}},
        {"resources": {"concurrent_runs": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_what_may_be_added_or_moved_is_taken_over(begun, tmp_path, changes):
    experiment = SweepManifest.load(str(tmp_path / "out/demo"))
    experiment.finish()
    experiment.update_spec(make_plan(parse_spec(changed(begun, changes))))
    assert not experiment.finished
    assert SweepManifest.load(str(tmp_path / "out/demo")) == experiment


def test_a_changed_data_file_is_refused(begun, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace('"answer": "8"', '"answer": "9"'))
    assert main(["resume", str(tmp_path / "out/demo")]) == 2
    assert "data: task has changed since the sweep began (its hash was " in capsys.readouterr().err


def test_the_order_of_the_rows_is_no_change(begun, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), reverse=True)))
    experiment = SweepManifest.load(str(tmp_path / "out/demo"))
    experiment.update_spec(make_plan(parse_spec(begun)))


def test_a_changed_model_is_refused(begun, tmp_path, capsys):
    edit_weights(tmp_path / "model", lambda weights: weights["model.norm.weight"].add_(1))
    assert main(["resume", str(tmp_path / "out/demo")]) == 2
    assert "model: model.safetensors has changed since the sweep began" in capsys.readouterr().err


def test_a_damaged_record_of_the_experiment_is_refused(begun, tmp_path, capsys):
    path = tmp_path / "out/demo/checkpoints/experiment.json"
    path.write_text(path.read_text().replace("0.001", "0.002"))
    assert main(["resume", str(tmp_path / "out/demo")]) == 2
    assert "experiment.json is damaged" in capsys.readouterr().err


def test_a_sweep_that_runs_is_left_alone(begun, tmp_path, capsys):
    from layersweep.orchestrator.execution.sweep_lock import hold_lock

    folder = str(tmp_path / "out/demo")
    with hold_lock(folder):
        assert main(["resume", folder]) == 2
        assert f"process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.slow
def test_only_what_is_missing_is_done(tmp_path):
    """Finished: nothing to do. Then with another layer and three steps more: the first three steps stay as they are,
    the new ones and the new layer are run, once each."""
    log = tmp_path / "log.txt"
    path = spec(tmp_path, training={"steps": 3, "warmup_steps": 1})
    assert start("run", str(path), log).wait() == 0, log.read_text()
    folder = tmp_path / "chaos"
    before = pd.read_parquet(folder / "steps.parquet")
    written = (folder / "contribution.parquet").stat().st_mtime_ns
    assert start("resume", str(folder), log).wait() == 0
    assert "nothing to do" in log.read_text().splitlines()[-1]
    assert (folder / "contribution.parquet").stat().st_mtime_ns == written

    path = spec(tmp_path, training={"steps": 6, "warmup_steps": 1})
    data = yaml.safe_load(path.read_text()) | {"layers": [1, 2, 4]}
    process = start("resume", write(path, data), log)
    processes = Processes(process)
    while process.poll() is None:
        processes.all()
    assert process.returncode == 0, log.read_text()
    after = pd.read_parquet(folder / "steps.parquet")
    for name in ("full", "layer-01", "layer-02", "layer-04"):
        assert after.loc[after["selection"] == name, "step"].tolist() == list(range(6))
    kept = after.merge(before[["selection", "step"]]).reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.sort_values(["selection", "step"], ignore_index=True),
                                  before.sort_values(["selection", "step"], ignore_index=True))  # fmt: skip
    table = pd.read_parquet(folder / "contribution.parquet").set_index("selection")
    assert (table["status"] == "completed").all() and (table["steps"].dropna() == 6).all()
    scores = pd.read_parquet(folder / "scores.parquet")
    assert set(scores.loc[(scores["split"] == "final") & (scores["selection"] != "base"), "step"]) == {6}
    assert not processes.left()
    # Added steps are those of a sweep that had them from the start.
    straight = tmp_path / "straight"
    straight.mkdir()
    path = spec(straight, training={"steps": 6, "warmup_steps": 1})
    assert start("run", write(path, yaml.safe_load(path.read_text()) | {"layers": [1, 2, 4]}), log).wait() == 0
    expected = pd.read_parquet(straight / "chaos/contribution.parquet").set_index("selection")
    same = ["score", "contribution", "final_score", "update_norm", "generated_tokens"]
    pd.testing.assert_frame_equal(table[same], expected[same])
    shutil.rmtree(straight)


@pytest.mark.parametrize(
    ("rewards", "expected"), [([], 0), ([0.0, 0.5], 0), ([0.5, 0.0, 0.0], 2), ([0.0, 0.25, 0.0], 1), ([0.0, 0.0], 2)]
)
def test_a_resumed_run_remembers_how_long_it_has_had_no_reward(rewards, expected):
    assert steps_without_reward([{"reward_mean": reward} for reward in rewards]) == expected
    penalised = [{"reward_mean": reward - 0.1, "success_rate": reward} for reward in rewards]
    assert steps_without_reward(penalised) == expected
