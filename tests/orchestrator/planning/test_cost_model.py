"""GPU-hours worked out by hand for a toy model on a toy GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from layersweep.cli import DEMO
from layersweep.orchestrator.planning.cost_model import (
    Assumptions,
    GpuKind,
    block_flops,
    cache_bytes,
    estimate,
    forward_flops,
    generation_seconds,
    update_bytes,
    update_flops,
)
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection
from layersweep.workers.config import LearningRateTuning

# Attention 10 * (2 * 10 + 2 * 10), norms 2 * 10, MLP 3 * 10 * 20: 1020 parameters a layer. The LM head is 50 * 10.
SHAPE = Architecture(
    name="Qwen2ForCausalLM", layers=2, hidden=10, intermediate=20, heads=1, kv_heads=1, head_dim=10, vocabulary=50,
    tied=True, qkv_bias=False, qk_norm=False, max_positions=64,
)  # fmt: skip
GPU = GpuKind("toy", {"float32": 1e6}, bandwidth=1e5, memory=1e6)
ALL = Assumptions(response_share=0.5, prompt_tokens=4, arithmetic=1.0, bandwidth=1.0)


@pytest.fixture
def plan():
    """Full and layer 1; 2 steps of 4 prompts x 2 responses of at most 4 tokens; one suite of 8 prompts x 4."""
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    spec["training"] |= {
        "steps": 2,
        "prompts_per_step": 4,
        "group_size": 2,
        "max_response_tokens": 4,
        "warmup_steps": 1,
    }
    spec["evaluation"]["suites"] = [{"name": "one", "prompts": 8, "samples": 4}]
    return Plan(parse_spec(spec), SHAPE, (Run(Selection.full(), 0), Run(Selection.layer(1), 0)))


def test_a_token_through_the_model():
    assert SHAPE.layer_parameters == 1020
    assert block_flops(SHAPE, 5) == 2 * 1020 + 4 * 10 * 5 == 2240
    assert forward_flops(SHAPE, 5) == 2 * 2240 + 2 * 50 * 10 == 5480


@pytest.mark.parametrize(
    ("selection", "reference", "epochs", "expected"),
    [
        # Forward and backward through both blocks and the head (2 * 5480), and the weights of layer 0 (2040).
        (Selection.layer(0), False, 1, 13_000),
        # Block 0 forward (2240); block 1 and head forward and backward (2 * 3240); weights (2040).
        (Selection.layer(1), False, 1, 10_760),
        # The lower part once; in each of 2 epochs 3 * 3240, with the reference, and the weights.
        (Selection.layer(1), True, 2, 2240 + 2 * (3 * 3240 + 2040)),
        # 2 * 5480, and the weights of both layers and the head (2 * 2040 + 1000).
        (Selection.full(), False, 1, 16_040),
        (Selection.several((0, 1)), False, 1, 2 * 5480 + 2 * 2040),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_a_token_of_an_update(selection, reference, epochs, expected):
    assert update_flops(SHAPE, selection, 5, reference, epochs) == expected


def test_old_logprobs_are_a_forward_of_the_upper_part():
    """For three of four minibatches, once in two epochs: .75 * 3240."""
    assert update_flops(SHAPE, Selection.layer(1), 5, True, 2, 0.75) == 2240 + 0.75 * 3240 + 2 * (3 * 3240 + 2040)


def test_writing_waits_for_memory_while_few_are_written_at_once(plan):
    """Weights (2 * 1020 + 500) * 4 = 10,160 bytes. Prompt 4 and half of 2 tokens: context 5, whose cache is
    5 * 2 * 2 layers * 10 * 4 = 800 bytes a sequence. With 8 at once a pass takes (10,160 + 6400) / 1e5 = 0.1656 s,
    more than its 8 * 5480 / 1e6. 80 responses of 2 tokens take 20 passes; 10 prompts of 4 tokens are read with
    2 * (2040 + 4 * 10 * 2) + 1000 = 5240 FLOPs a token."""
    found = generation_seconds(plan, GPU, ALL, responses=80, prompt=4, length=2, at_once=8, sharing=8)
    assert found == pytest.approx(20 * 0.1656 + 10 * 4 * 5240 / 1e6)


def test_writing_waits_for_arithmetic_when_many_are(plan):
    """Half of 1e6 bytes holds (5e5 - 10,160) / 800 = 612.3 caches, so 1000 at once are 612.3 at once: 612.3 * 5480
    / 1e6 = 3.36 s a pass, against 5 s of memory; on a device of ten times the bandwidth arithmetic decides."""
    room = (5e5 - 10_160) / 800
    reading = 100 * 4 * 5240 / 1e6
    slow = generation_seconds(plan, GPU, ALL, 1000, 4, 2, at_once=1000, sharing=10)
    assert slow == pytest.approx(2000 / room * 5.0 + reading)
    fast = generation_seconds(plan, GpuKind("wide", GPU.flops, 1e6, 1e6), ALL, 1000, 4, 2, at_once=1000, sharing=10)
    assert fast == pytest.approx(2000 * 5480 / 1e6 + reading)


@pytest.mark.parametrize(("dtype", "cache", "expected"), [("float32", "auto", 160), ("bfloat16", "auto", 80),
                                                          ("float32", "fp8", 40), ("bfloat16", "fp8", 40)])  # fmt: skip
def test_a_token_in_the_kv_cache(plan, dtype, cache, expected):
    """A key and a value of 10 numbers in each of 2 blocks."""
    spec = plan.spec
    spec = spec.model_copy(update={
        "training": spec.training.model_copy(update={"dtype": dtype}),
        "rollout": spec.rollout.model_copy(update={"kv_cache_dtype": cache}),
    })  # fmt: skip
    assert cache_bytes(replace(plan, spec=spec)) == expected


def test_a_whole_sweep(plan):
    """Generation: 8 for both runs at first, then 8 each: 24 responses, 6 passes of 0.1656 s, 12 prompts read.
    Updates: 2 steps * 8 * (2 + 4 / 2) tokens, at 16,040 + 10,760 FLOPs. Scoring base and two runs: 96 responses, 32 at
    once, 6 passes of (10,160 + 32 * 800) / 1e5 s, 24 prompts read."""
    assert (plan.training_responses, plan.evaluation_responses) == (24, 96)
    hours = estimate(plan, GPU, ALL)
    assert hours.rollout * 3600 == pytest.approx(6 * 0.1656 + 12 * 4 * 5240 / 1e6)
    assert hours.update * 3600 == pytest.approx(64 * 26_800 / 1e6)
    assert hours.evaluation * 3600 == pytest.approx(6 * 0.3576 + 24 * 4 * 5240 / 1e6)
    assert hours.total == hours.rollout + hours.update + hours.evaluation


def test_trials_of_learning_rates_are_counted(plan):
    """Two full trials of 2 steps: as many updates as two more full runs, 64 tokens at 16,040 FLOPs each."""
    tuning = LearningRateTuning(tune=(1e-3, 1e-4), steps=2)
    training = plan.spec.training.model_copy(update={"learning_rate": tuning})
    more = replace(plan, spec=plan.spec.model_copy(update={"training": training}))
    added = estimate(more, GPU, ALL).update - estimate(plan, GPU, ALL).update
    assert added * 3600 == pytest.approx(2 * 64 * 16_040 / 1e6)


def test_activations(plan):
    """Numbers a token: a block keeps 20 for norms, 4 * 10 + 3 * 20 besides, and as it trains 20 + 10 + 20 + 20 more;
    the final norm 10: 200, 320 from layer 0 on, 390 of the whole. With 100 tokens two chunks of 100 * 50 logits come on
    top, more than the backward pass of a block takes; and of the whole the embedding's gradient, of 500 numbers."""
    training = plan.spec.training.model_copy(update={"micro_batch_tokens": 100})
    plan = replace(plan, spec=plan.spec.model_copy(update={"training": training}))
    assert update_bytes(plan, Selection.layer(1)) == 4 * (100 * 200 + 10_000)
    assert update_bytes(plan, Selection.layer(0)) == 4 * (100 * 320 + 10_000)
    assert update_bytes(plan, Selection.full()) == 4 * (100 * 390 + 10_000 + 500)
