"""From an empty folder with a reward, 50 rows and a spec to a table; the same reward in two signatures."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow

VERL = """
def score(data_source, solution_str, ground_truth, extra_info):
    \"\"\"1 for the right sum, and a tenth for any number of two digits.\"\"\"
    if solution_str == "66":
        raise RuntimeError("not this one")
    right = solution_str == ground_truth
    return {"score": float(right) or 0.1 * solution_str.isdecimal() * (len(solution_str) == 2), "right": right}
"""
TRL = VERL.replace(
    "def score(data_source, solution_str, ground_truth, extra_info):",
    "def score(prompts, completions, answer, **columns):\n    return [one(c, a) for c, a in zip(completions, answer)]\n"
    "def one(solution_str, ground_truth):",
)
SPEC = """
name: mine
model: {type: tiny, layers: 2, hidden_size: 32, heads: 1, intermediate_size: 64, warmup_steps: 60}
task:
  type: prompts
  data: {path: rows.jsonl, prompt_format: plain, selection_share: 0.2, final_share: 0}
  reward: my_rewards.py:score
layers: all
training:
  steps: 2
  prompts_per_step: 8
  group_size: 4
  learning_rate: {layer: 1.0e-3, full: 3.0e-4}
  max_response_tokens: 3
  dtype: float32
evaluation: {suites: [{name: held-out, prompts: 6, samples: 4}]}
"""


def folder_with(folder: Path, reward: str) -> Path:
    """A reward file, 50 rows and a spec of 15 lines, and nothing else."""
    folder.mkdir()
    (folder / "my_rewards.py").write_text(reward)
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(30, 40) for b in range(30, 35)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sweep.yaml").write_text(SPEC.lstrip())
    return folder


def command(folder: Path, *words: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "layersweep", *words], cwd=folder, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = folder_with(tmp_path_factory.mktemp("bring") / "verl", VERL)
    assert "right answers" in command(folder, "data", "sweep.yaml")
    assert "prompts, grpo" in command(folder, "plan", "sweep.yaml")
    return folder, command(folder, "run", "sweep.yaml")


def test_a_reward_rows_and_a_spec_are_enough(finished):
    folder, said = finished
    assert len((folder / "sweep.yaml").read_text().splitlines()) == 15
    scores, steps = (pd.read_parquet(folder / "runs/mine" / f"{name}.parquet") for name in ("scores", "steps"))
    assert set(scores["selection"]) == {"base", "full", "layer-00", "layer-01"}
    judged = scores[~scores["unjudged"]]
    assert (judged["reward.right"] == (judged["score"] == 1)).all()
    assert set(judged["score"]) <= {0.0, 0.1, 1.0}
    lost = scores[scores["unjudged"]]
    assert (lost["score"] == 0).all() and lost["reward.right"].isna().all()
    assert steps["reward.right"].between(0, 1).all()
    if len(lost) or steps["unjudged_fraction"].any():
        assert said.count("RuntimeError: not this one") == 1 and "my_rewards.py" in said


@pytest.mark.long
def test_the_same_reward_in_trls_signature_gives_the_same_table(finished):
    folder, _ = finished
    other = folder_with(folder.parent / "trl", TRL)
    command(other, "run", "sweep.yaml")
    for name in ("contribution", "scores"):
        ours, theirs = (pd.read_parquet(place / "runs/mine" / f"{name}.parquet") for place in (folder, other))
        columns = [column for column in ours if column != "seconds"]
        if name == "scores":  # rows come as runs end
            key = ["selection", "step", "prompt", "sample"]
            ours, theirs = (table.sort_values(key, ignore_index=True) for table in (ours, theirs))
        pd.testing.assert_frame_equal(ours[columns], theirs[columns])


def test_a_sweep_with_another_reward_does_not_go_on(finished):
    folder, _ = finished
    before = (folder / "my_rewards.py").read_text()
    (folder / "my_rewards.py").write_text(before.replace("0.1 *", "0.2 *"))
    try:
        said = command(folder, "resume", "runs/mine", "training.steps=3", expect=2)
    finally:
        (folder / "my_rewards.py").write_text(before)
    assert "code: my_rewards.py has changed since the sweep began, first in line 7: it was" in said


def test_a_moved_folder_goes_on(finished, tmp_path):
    """Nothing is left to do, wherever the reward lies now."""
    folder, _ = finished
    spec = yaml.safe_load((folder / "runs/mine/sweep.yaml").read_text())
    assert spec["task"]["reward"][0]["path"] == f"{folder}/my_rewards.py:score"
    moved = folder.parent / "moved.yaml"
    (tmp_path / "my_rewards.py").write_text((folder / "my_rewards.py").read_text())
    spec["task"]["reward"][0]["path"] = f"{tmp_path}/my_rewards.py:score"
    moved.write_text(yaml.safe_dump(spec))
    assert "nothing to do" in command(folder, "resume", "runs/mine", str(moved))
