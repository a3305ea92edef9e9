"""The self-check accepts right models and refuses planted faults, each model in a process of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from layersweep.rollout.engine.plain_forward import ChangedWeights, PlainForward, ScoredResponse

COMMON = {
    "vocab_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "head_dim": 32}
MODELS = {
    "Llama": SMALL | {"tie_word_embeddings": False},
    "Qwen2": SMALL | {"tie_word_embeddings": True},
    "Qwen3": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 28, "head_dim": 128},
}
"""Llama with square projections; Qwen2.5 with biases; Qwen3 as deep and with heads as wide as the 1.7B model's."""
ROPES = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


def save(folder, family: str, **changes) -> str:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**COMMON | MODELS[family] | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float()
    with torch.no_grad():  # biases start at zero, where a bias that is dropped would hardly show
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return str(folder)


def faults(folder: str, family: str, dtype: str, *names: str) -> dict:
    """What tests.rollout.engine.faults prints."""
    command = [sys.executable, "-m", "tests.rollout.engine.faults", folder, f"{family}ForCausalLM", dtype, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # vLLM logs there too


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", MODELS)
def test_every_planted_fault_is_refused_and_the_sound_engine_accepted(tmp_path, family, dtype):
    """Before the faults and after them: within 1e-5 nats in float32, and .05 in bfloat16."""
    seen = faults(save(tmp_path, family), family, dtype)
    assert max(seen["sound"], seen["again"]) < {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    assert len(seen["refusals"]) >= 15
    assert [fault for fault, refusal in seen["refusals"].items() if not refusal] == []
    assert all(("trainer" in fault) == ("trainer" in refusal) for fault, refusal in seen["refusals"].items())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_deep_model_before_any_training_is_accepted(tmp_path, dtype):
    """Weights as they are initialized, .02: each block adds little, and tokens are nearly equally likely."""
    folder = save(tmp_path, "Qwen3", initializer_range=0.02, tie_word_embeddings=True)
    assert faults(folder, "Qwen3", dtype, "none")["sound"] < {"float32": 1e-6, "bfloat16": 0.01}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("rope", ROPES)
def test_supported_rotary_embeddings_are_the_same_in_engine_trainer_and_transformers(tmp_path, rope):
    parameters = {"rope_type": rope, "rope_theta": 10000.0} | ROPES[rope]
    folder = save(tmp_path, "Llama", rope_parameters=parameters, initializer_range=0.2)
    assert faults(folder, "Llama", "float32", "none")["sound"] < 2e-5


def test_the_plain_forward_is_transformers_own(model_folder):
    """Of the base, of one changed block and of all weights changed, of unequal lengths in one batch: within 1e-5 nats
    of a whole model that has these weights."""
    plain = PlainForward(model_folder, "float32")
    random = np.random.default_rng(0)
    pairs = [(random.integers(0, 32, p), random.integers(0, 32, r)) for p, r in ((3, 9), (20, 4))]
    block = {name: 0.5 for name in plain.weights if name.startswith("model.layers.2.")}
    every = dict.fromkeys(plain.weights, 0.1)
    amounts = [{}, block, every]
    changes = [ChangedWeights(plain.weights, several, seed=1) for several in amounts]
    found = plain.logprobs([ScoredResponse(change, *pair) for change in changes for pair in pairs], torch.float32)
    for i, change in enumerate(changes):
        model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        model.load_state_dict(dict(change), strict=False)
        for (prompt, response), mine in zip(pairs, found[2 * i :], strict=False):
            ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(response)), torch.from_numpy(response)]
            torch.testing.assert_close(mine, expected.detach(), atol=1e-5, rtol=0)


def test_a_change_is_a_share_of_each_weight():
    """Every entry by a quarter of its size, up or down; zeros by a quarter; the same each time, another by seed."""
    base = {"a": torch.tensor([[1.0, -2.0, 4.0], [8.0, 16.0, -32.0]]), "b": torch.zeros(3), "c": torch.ones(5, 2)}
    changed = ChangedWeights(base, {"a": 0.25, "b": 0.25}, seed=3)
    assert sorted(changed) == ["a", "b"]
    assert set((changed["a"] / base["a"]).flatten().tolist()) <= {0.75, 1.25}
    assert set(changed["b"].tolist()) <= {-0.25, 0.25}
    assert torch.equal(changed["a"], changed["a"])
    assert torch.equal(changed.rows("a", torch.tensor([1, 0, 1])), changed["a"][[1, 0, 1]])
    assert torch.equal(changed.rows("c", slice(2, 4)), base["c"][2:4])
    many = {"w": torch.ones(40, 40)}
    one, other = (ChangedWeights(many, {"w": 0.5}, seed)["w"] for seed in (1, 2))
    assert 0.3 < (one == other).float().mean() < 0.7
