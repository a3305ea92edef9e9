"""Memory of an update: what the plan counts against what torch allocates, recorded on the meta device at real sizes."""

import gc

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layersweep.policies.model.architecture import CHUNK_BYTES, Architecture
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.policies.model.tree_batch import MicroBatch
from layersweep.policies.model.trunk import Policy, Trunk
from layersweep.policies.selection import Selection
from layersweep.workers.training.micro_batch_size import activation_bytes_per_token, head_bytes
from tests.helpers.allocations import Allocations

PROMPT, RESPONSE = 256, 3072


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Chunks of logits as on GPUs."""
    monkeypatch.setitem(CHUNK_BYTES, "meta", CHUNK_BYTES["cuda"])


def trunk_of(name: str, layers: int) -> tuple[Trunk, Architecture]:
    config = dict(KNOWN_MODELS[name]) | {"num_hidden_layers": layers}
    kind = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}[config["architectures"][0]]
    config.pop("layer_types", None)
    full = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "architectures"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(full, dtype=torch.bfloat16)
    return Trunk(model), Architecture.from_config(config)


def batch() -> MicroBatch:
    """One response."""
    tokens = PROMPT + RESPONSE
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    flat = torch.zeros(RESPONSE, dtype=torch.long, device="meta")
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
    return MicroBatch(ids, ids.clone(), mask, flat, flat.clone(), flat.clone(), flat.clone())


def peak(trunk: Trunk, selection: Selection, checkpointing: bool) -> int:
    """Bytes allocated at once by a forward and a backward pass, beside weights and their gradients."""
    policy, given = Policy(trunk, selection), batch()
    policy.checkpointing = checkpointing
    hidden = None if selection.trains_all else trunk.prefix(given, policy.start)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    with Allocations() as made:
        logp, _ = policy(given, hidden, 1.0)
        logp.sum().backward()
    return made.peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("selection", [Selection.layer(0), Selection.layer(4), Selection.layer(7), Selection.full()],
                         ids=lambda s: s.name)  # fmt: skip
@pytest.mark.parametrize("name", ["Qwen/Qwen3-1.7B-Base", "Qwen/Qwen2.5-Math-1.5B"])
def test_the_plan_counts_what_an_update_takes(as_on_a_gpu, name, selection, checkpointing):
    trunk, shape = trunk_of(name, 8)
    counted = activation_bytes_per_token(shape, selection, 2, checkpointing) * (PROMPT + RESPONSE)
    counted += head_bytes(shape, RESPONSE, gpu=True)
    print(name, selection.name, checkpointing, round(peak(trunk, selection, checkpointing) / counted, 3))
    assert counted == pytest.approx(peak(trunk, selection, checkpointing), rel=0.1)
