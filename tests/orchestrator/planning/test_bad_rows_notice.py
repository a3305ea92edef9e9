"""What a plan says of rows that are left out."""

import json

import pytest
import yaml

from layersweep.cli import DEMO, main

REWARD = "def length(prompts, completions, **columns):\n    return list(map(len, completions))\n"


@pytest.mark.parametrize("model", [{"type": "tiny"}, "Qwen/Qwen3-1.7B-Base"], ids=["tiny", "pretrained"])
def test_rows_that_are_left_out_are_named_once(tmp_path, caplog, monkeypatch, model):
    """The tiny model, whose alphabet is the task's, reads no data of its own; nor does a suite over the same data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARD)
    rows = [{"question": f"is {i}?", "answer": str(i)} for i in range(20)] + [{"question": "", "answer": "1"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": "rows.jsonl", "bad_rows": "skip", "prompt_format": "plain", "selection_share": 0.3}
    task = {"type": "prompts", "data": data, "reward": "rewards.py:length"}
    spec = yaml.safe_load(open(DEMO)) | {
        "model": model, "task": task, "evaluation": {"suites": [{"name": "rows", "prompts": 1, "task": task}]},
    }  # fmt: skip
    spec["training"] |= {"prompts_per_step": 2, "minibatches": 1}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec))
    assert main(["plan", "sweep.yaml"]) == 0
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    why = "is bad: row 21: question is empty. Bad rows are left out"
    assert said == f"data: 1 of 21 rows of {tmp_path}/rows.jsonl {why}"
