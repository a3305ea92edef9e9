"""A sweep over two layers and the full model of every further family, from `plan` to a folder for transformers."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from layersweep.workers.startup.tiny_model_training import character_tokenizer
from tests.helpers.families import FAMILIES, save_random

pytestmark = pytest.mark.long

REWARD = """
def score(data_source, solution_str, ground_truth, extra_info):
    return 0.1 * sum(character.isdecimal() for character in solution_str)
"""


def layersweep(folder, *words: str) -> str:
    command = [sys.executable, "-P", "-m", "layersweep", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_two_layers_of_a_family(family, tmp_path):
    """Each run trains its own weights alone, gradients reach them, and the exported model has them."""
    tokenizer = character_tokenizer("0123456789+=abcdefgh")
    folder = save_random(tmp_path / "model", family, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    (tmp_path / "my_rewards.py").write_text(REWARD)
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(30, 40) for b in range(30, 35)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": "family", "model": {"type": "pretrained", "path": folder}, "layers": [1, 2],
        "task": {"type": "prompts", "reward": "my_rewards.py:score", "data": {
            "path": "rows.jsonl", "prompt_format": "plain", "selection_share": 0.2, "final_share": 0}},
        "training": {"steps": 2, "prompts_per_step": 8, "group_size": 4, "max_response_tokens": 24, "dtype": "float32",
                     "learning_rate": {"layer": 1e-3, "full": 3e-4}},
        "evaluation": {"suites": [{"name": "held-out", "prompts": 6, "samples": 4}]},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    block = sum(weight.numel() for name, weight in base.items() if name.startswith("model.layers.1."))
    assert f"{block:,} in a layer" in layersweep(tmp_path, "plan", "sweep.yaml")
    layersweep(tmp_path, "run", "sweep.yaml")
    table = pd.read_parquet(tmp_path / "runs/family/contribution.parquet").set_index("selection")
    assert (table["status"] == "completed").all() and table["score"].notna().all()
    assert table.loc["layer-01", "trainable_parameters"] == block
    steps = pd.read_parquet(tmp_path / "runs/family/steps.parquet")
    assert (steps["grad_norm"] > 0).all() and (steps["logprob_mismatch"].abs() < 1e-4).all()
    layersweep(tmp_path, "export", "runs/family", "layer-02", "-o", "exported")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).state_dict()
    changed = {name for name, weight in trained.items() if not torch.equal(weight, base[name])}
    assert changed == {name for name in base if name.startswith("model.layers.2.")}
