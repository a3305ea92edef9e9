"""The routed vLLM engine against transformers: every run's responses through its own weights, in one batch."""

import weakref

import numpy as np
import pytest
import torch

from layersweep.policies.selection import Selection
from layersweep.rollout.types import Sampling, StaleWeights, TransferFailed
from layersweep.workers.transport.weight_transfer import in_parts
from tests.helpers.engine_logprobs import trained, worst

SELECTIONS = [
    *(Selection.layer(k) for k in range(4)), Selection.several((0, 2)), Selection.full(),
    Selection.part((1,), "attention"), Selection.part((0, 3), "mlp"), Selection.part((2,), "norms"),
    Selection.part((3,), "q_proj"), Selection.part((2,), "v_proj|up_proj"), Selection.part((), r"^model\.norm"),
    Selection.part((), "embed_tokens"),
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(model_folder):
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine

    return RolloutEngine(model_folder, "Qwen3ForCausalLM", RolloutConfig(max_num_seqs=64), "float32", seed=0)


@pytest.fixture(scope="module")
def variants(model_folder):
    """Each run's weights: the base moved by noise, in what the selection trains alone. None is the base."""
    from transformers import AutoModelForCausalLM

    models = {None: AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)}
    for i, selection in enumerate(SELECTIONS):
        torch.manual_seed(i)
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if selection.trains(name):
                    parameter += (0.3 if "norm" in selection.name else 0.05) * torch.randn_like(parameter)
        models[selection.name] = model
    return models


def test_all_runs_in_one_batch_equal_transformers(engine, variants):
    """14 paths at once, of whole blocks, parts of them and what is outside of them, prompts shared between runs, prefix
    caching on: within 1e-5 of the run's own weights and far from the base's (a wrong-run control)."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 32, n).astype(np.int32) for n in (3, 40, 40, 70)]
    for selection in SELECTIONS:
        sent = engine.push(selection.name, 1, trained(variants[selection.name], selection)).result()
        assert sent.bytes == sum(p.numel() * 4 for p in trained(variants[selection.name], selection).values()) > 0
    sampling = Sampling(samples=3, max_tokens=12, stop_token_ids=(1,), logprobs=True)
    futures = {
        name: engine.generate(name, 0 if name is None else 1, prompts, [5, 6, 7, 8], sampling) for name in variants
    }
    for name, future in futures.items():
        completions = future.result(timeout=120)
        assert len(completions.lengths) == 12
        assert worst(variants[name], prompts, completions, 3) < 1e-5, name
        if name is not None:
            assert worst(variants[None], prompts, completions, 3) > 1e-2, name


def test_weights_that_come_in_parts(engine, variants):
    """A whole model block by block: what is served is the same, and no more than one part is held meanwhile."""
    weights, alive = trained(variants["full"], Selection.full()), []
    prompts, sampling = [np.arange(2, 32).astype(np.int32)], Sampling(4, max_tokens=8, logprobs=True)

    def parts():
        for names in in_parts(weights):
            assert not any(reference() is not None for reference in alive), "the part before is still held"
            part = {name: weights[name].clone() for name in names}
            alive.extend(map(weakref.ref, part.values()))
            yield part
            del part

    sent = engine.push_parts("full", 5, parts())
    assert sent.bytes == sum(weight.nbytes for weight in weights.values()) and len(alive) == len(weights)
    done = engine.generate("full", 5, prompts, [1], sampling).result(60)
    assert worst(variants["full"], prompts, done, 4) < 1e-5


def test_a_push_that_breaks_off_leaves_no_weights_and_an_older_one_does_not_go_on(engine, variants):
    weights = trained(variants["full"], Selection.full())
    parts = [{name: weights[name] for name in names} for names in in_parts(weights)]

    def broken():
        yield parts[0]
        raise TransferFailed("full: the trainer is gone")

    with pytest.raises(TransferFailed):
        engine.push_parts("full", 6, broken())
    with pytest.raises(StaleWeights, match="the engine has 0"):
        engine.generate("full", 6, [np.arange(2, 9)], [0], Sampling()).result(60)

    def overtaken():
        yield parts[0]
        engine.push("full", 8, weights).result(60)
        yield parts[1]

    with pytest.raises(StaleWeights, match="other weights were pushed meanwhile"):
        engine.push_parts("full", 7, overtaken())
    assert engine.generate("full", 8, [np.arange(2, 9)], [0], Sampling()).result(60).version == 8


def test_a_push_takes_effect_and_prefixes_are_not_shared_across_versions(engine, variants):
    """The same prompt before and after a push of other weights for the same run: the cache salt carries the version."""
    prompts, sampling = [np.arange(2, 32).repeat(3).astype(np.int32)], Sampling(8, max_tokens=4, logprobs=True)
    layer, other = Selection.layer(1), variants["layer-01"]
    base_block = {n: p.detach() for n, p in variants[None].named_parameters() if layer.trains(n)}
    for version, weights, model in ((1, trained(other, layer), other), (2, base_block, variants[None])):
        engine.push("moving", version, weights).result()
        completions = engine.generate("moving", version, prompts, [1], sampling).result(timeout=60)
        assert worst(model, prompts, completions, 8) < 1e-5


def test_stale_versions_are_refused(engine, variants):
    from layersweep.rollout.types import StaleWeights

    engine.push("layer-00", 7, trained(variants["layer-00"], Selection.layer(0))).result()
    with pytest.raises(StaleWeights, match="asked for version 6, the engine has 7"):
        engine.generate("layer-00", 6, [np.array([3, 4], np.int32)], [0], Sampling()).result(timeout=60)


def test_what_no_block_has_is_refused(engine, variants):
    """And the run has no weights there any more: those before it made room."""
    from layersweep.rollout.types import StaleWeights

    weights = trained(variants["layer-00"], Selection.layer(0))
    engine.push("broken", 1, weights).result(timeout=60)
    weights["model.layers.0.mlp.side_proj.weight"] = weights["model.layers.0.mlp.down_proj.weight"]
    with pytest.raises(ValueError, match="mlp.side_proj.weight"):
        engine.push("broken", 2, weights).result(timeout=60)
    with pytest.raises(StaleWeights, match="asked for version 1, the engine has 0"):
        engine.generate("broken", 1, [np.array([3, 4], np.int32)], [0], Sampling()).result(timeout=60)


def test_a_prompt_that_is_too_long_is_refused_and_the_engine_lives(engine):
    with pytest.raises(ValueError, match="256"):
        engine.generate(None, 0, [np.full(400, 3, np.int32)], [0], Sampling()).result(timeout=60)
    assert len(engine.generate(None, 0, [np.array([3], np.int32)], [0], Sampling()).result(timeout=60).lengths) == 1


def test_the_same_seeds_give_the_same_tokens_alone_and_in_company(engine):
    """Seeds belong to prompts and samples, not to the batch: common random numbers across runs depend on it."""
    prompts = [np.array([4, 5, 6], np.int32), np.array([9], np.int32)]
    sampling = Sampling(4, max_tokens=10)
    alone = engine.generate(None, 0, prompts, [11, 12], sampling).result(timeout=60)
    together = [engine.generate(None, 0, prompts, [11, 12], sampling) for _ in range(6)]
    for future in together:
        np.testing.assert_array_equal(future.result(timeout=60).tokens, alone.tokens)


def test_company_changes_nothing_in_the_last_bit(engine, variants):
    """Tokens and log-probabilities of a run's few rows, alone and among two other runs' and the base's many: a sweep
    that was interrupted meets other company than one that was not, and must come to the same table."""
    for name in ("layer-00", "layer-02", "full"):
        engine.push(name, 1, trained(variants[name], next(s for s in SELECTIONS if s.name == name))).result()
    few, many = [np.array([4, 5, 6], np.int32)], [np.array([k, 9, k], np.int32) for k in range(2, 22)]
    sampling = Sampling(3, max_tokens=10, stop_token_ids=(1,), logprobs=True)
    for name in ("layer-00", "full"):
        alone = engine.generate(name, 1, few, [11], sampling).result(timeout=60)
        others = [
            engine.generate(n, 0 if n is None else 1, many, list(range(20)), sampling) for n in ("layer-02", None)
        ]
        together = engine.generate(name, 1, few, [11], sampling).result(timeout=60)
        assert len([future.result(timeout=60) for future in others]) == 2
        np.testing.assert_array_equal(together.tokens, alone.tokens)
        np.testing.assert_array_equal(together.logprobs, alone.logprobs)


def test_a_training_batch_does_not_wait_for_evaluations(engine):
    """256 responses of an evaluation, 64 at a time, then 16 of a batch that a trainer waits for: the batch ends first,
    with the tokens that it has alone."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, 32, 12).astype(np.int32) for _ in range(64)]
    ended = []
    batch = Sampling(samples=4, max_tokens=16, logprobs=True)
    evaluation = engine.generate(None, 0, prompts, list(range(64)), Sampling(samples=4, max_tokens=16))
    training = engine.generate(None, 0, prompts[:4], [7, 8, 9, 10], batch)
    evaluation.add_done_callback(lambda _: ended.append("evaluation"))
    training.add_done_callback(lambda _: ended.append("training"))
    beside = training.result()
    assert len(evaluation.result().lengths) == 256
    assert ended == ["training", "evaluation"]
    alone = engine.generate(None, 0, prompts[:4], [7, 8, 9, 10], batch).result()
    assert np.array_equal(beside.tokens, alone.tokens) and np.array_equal(beside.logprobs, alone.logprobs)


def test_a_push_ends_requests_of_older_versions(engine, variants):
    """A call that was retried leaves requests behind; they are given up, and the run is served from its new weights."""
    from layersweep.rollout.types import StaleWeights

    weights = trained(variants["layer-00"], Selection.layer(0))
    engine.push("retried", 1, weights).result(timeout=60)
    sampling = Sampling(8, max_tokens=150)
    orphan = engine.generate("retried", 1, [np.array([4, 5], np.int32)] * 40, list(range(40)), sampling)
    engine.push("retried", 2, weights).result(timeout=60)
    with pytest.raises(StaleWeights, match="replaced meanwhile"):
        orphan.result(timeout=60)
    assert (
        len(engine.generate("retried", 2, [np.array([4], np.int32)], [0], Sampling()).result(timeout=60).lengths) == 1
    )
    assert engine.stuck_for() == 0


def test_an_engine_that_slept_goes_on_as_before(engine, variants):
    """On a CPU vLLM keeps its memory, the rest is as on a GPU: what was being written is given up, requests are
    refused, runs are pushed and dropped, and after waking the same seeds give the same tokens, from no stale cache."""
    from layersweep.rollout.types import StaleWeights

    weights = trained(variants["layer-02"], Selection.layer(2))
    prompts, sampling = [np.arange(2, 32).repeat(3).astype(np.int32)], Sampling(8, max_tokens=6, logprobs=True)
    engine.push("sleeper", 1, weights).result(timeout=60)
    before = engine.generate("sleeper", 1, prompts, [3], sampling).result(timeout=60)
    orphan = engine.generate("sleeper", 1, prompts * 40, list(range(40)), Sampling(8, max_tokens=150))
    engine.sleep().result(timeout=60)
    with pytest.raises(StaleWeights, match="put to sleep"):
        orphan.result(timeout=60)
    with pytest.raises(StaleWeights, match="asleep"):
        engine.generate("sleeper", 1, prompts, [3], sampling).result(timeout=60)
    engine.push("sleeper", 2, weights).result(timeout=60)
    engine.drop("layer-00").result(timeout=60)
    assert engine.stuck_for() == 0
    engine.wake().result(timeout=60)
    after = engine.generate("sleeper", 2, prompts, [3], sampling).result(timeout=60)
    np.testing.assert_array_equal(after.tokens, before.tokens)
    assert worst(variants["layer-02"], prompts, after, 8) < 1e-5


def test_an_engine_that_is_reset_knows_no_run(engine, variants):
    """What was being written is given up, the base's too; runs of the same names bring their own weights, which no
    cached prompt mixes with those before; and the base is as it was."""
    prompts, sampling = [np.arange(2, 32).repeat(3).astype(np.int32)], Sampling(8, max_tokens=6, logprobs=True)
    base = engine.generate(None, 0, prompts, [3], sampling).result(timeout=60)
    engine.push("again", 1, trained(variants["layer-02"], Selection.layer(2))).result(timeout=60)
    engine.generate("again", 1, prompts, [3], sampling).result(timeout=60)
    engine.sleep().result(timeout=60)
    engine.wake().result(timeout=60)
    long = Sampling(8, max_tokens=150)
    orphans = [engine.generate(run, v, prompts * 40, list(range(40)), long) for run, v in ((None, 0), ("again", 1))]
    engine.sleep().result(timeout=60)
    engine.reset().result(timeout=60)  # from sleep too
    for orphan in orphans:
        with pytest.raises(StaleWeights, match="put to sleep|reset"):
            orphan.result(timeout=60)
    with pytest.raises(StaleWeights, match="asked for version 1, the engine has 0"):
        engine.generate("again", 1, prompts, [3], sampling).result(timeout=60)
    engine.push("again", 1, trained(variants["layer-01"], Selection.layer(1))).result(timeout=60)
    after = engine.generate("again", 1, prompts, [3], sampling).result(timeout=60)
    assert worst(variants["layer-01"], prompts, after, 8) < 1e-5
    orphan = engine.generate(None, 0, prompts * 40, list(range(40)), long)
    engine.reset().result(timeout=60)  # awake
    with pytest.raises(StaleWeights, match="reset meanwhile"):
        orphan.result(timeout=60)
    np.testing.assert_array_equal(
        engine.generate(None, 0, prompts, [3], sampling).result(timeout=60).tokens, base.tokens
    )
    assert engine.stuck_for() == 0


def test_the_self_check_passes_and_catches_broken_routing(engine, model_folder, monkeypatch):
    """Sound routing differs by rounding; an overlay that keeps one of the base's norms is refused, and so is one
    that serves the base to all runs."""
    from layersweep.rollout.engine.model import RoutedMixin
    from layersweep.rollout.engine.selfcheck import RoutingMismatch, check
    from tests.rollout.engine.faults import as_base, in_block

    assert check(engine, model_folder, "float32") < 1e-5
    with in_block(as_base("post_attention_layernorm")), pytest.raises(RoutingMismatch, match="rounding explains"):
        check(engine, model_folder, "float32")
    with monkeypatch.context() as patch:
        patch.setattr(RoutedMixin, "_groups", lambda *_: None)
        with pytest.raises(RoutingMismatch):
            check(engine, model_folder, "float32")


def test_swap_serves_the_same_tokens_as_mixed(engine, variants):
    """The modes differ in what shares a batch, not in what is computed."""
    prompts, sampling = [np.array([4, 5, 6], np.int32)] * 2, Sampling(4, max_tokens=8)
    for selection in SELECTIONS[:3]:
        engine.push(selection.name, 9, trained(variants[selection.name], selection)).result()
    tokens = {}
    for mixed in (True, False):
        engine.batching.mixed, engine.batching.decided = mixed, True
        futures = [engine.generate(s.name, 9, prompts, [1, 2], sampling) for s in SELECTIONS[:3]]
        tokens[mixed] = [future.result(timeout=60).tokens for future in futures]
    engine.batching.mixed, engine.batching.decided = True, False
    for one, other in zip(*tokens.values(), strict=True):
        np.testing.assert_array_equal(one, other)
