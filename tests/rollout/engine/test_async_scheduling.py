"""Batches that are scheduled while the one before is in flight: the same responses, and weights that change between
batches alone."""

import shutil
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from layersweep.policies.selection import Selection
from layersweep.rollout.types import EngineStopped, Sampling, StaleWeights
from tests.helpers import async_on_cpu
from tests.helpers.engine_logprobs import trained, worst

RUNS = {"block": Selection.layer(1), "same-block": Selection.layer(1), "full": Selection.full(),
        "part": Selection.part((0, 3), "mlp")}  # fmt: skip


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    """The random model, with a tokenizer of one character a token."""
    from layersweep.workers.startup.tiny_model_training import character_tokenizer

    folder = tmp_path_factory.mktemp("with-tokenizer") / "model"
    shutil.copytree(model_folder, folder)
    character_tokenizer("0123456789abcdefghijklmnopqrst").save_pretrained(folder)
    return str(folder)


def start(folder: str, ahead: bool):
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine

    config = RolloutConfig(batching="mixed", max_num_seqs=24, async_scheduling=ahead)
    with async_on_cpu.allowed():
        return RolloutEngine(folder, "Qwen3ForCausalLM", config, "float32", seed=0)


@pytest.fixture(scope="module")
def ahead(folder):
    return start(folder, True)


@pytest.fixture(scope="module")
def models(folder):
    """Weights of each run and of its second version, as transformers' models; None is the base's."""
    import torch
    from transformers import AutoModelForCausalLM

    found = {None: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)}
    for i, (run, selection) in enumerate(RUNS.items()):
        for version in (1, 2):
            torch.manual_seed(10 * i + version)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if selection.trains(name):
                        parameter += 0.05 * torch.randn_like(parameter)
            found[run, version] = model
    return found


def prompts(count: int) -> list[np.ndarray]:
    """Prompts that share their beginning, more than a block of the KV cache."""
    rng, beginning = np.random.default_rng(4), np.arange(2, 32)
    return [np.concatenate([beginning, beginning[::-1], rng.integers(2, 32, i % 5)]) for i in range(count)]


def play(engine, models) -> list:
    """Everything that happens to an engine in a sweep, beside responses of the base that go on all the while.

    Returns:
        Name, model, samples and completions of each call that was answered.
    """
    done, idle = [], []

    def push(run, version):
        return engine.push(run, version, trained(models[run, version], RUNS[run])).result(60)

    def generate(run, version, count, **sampling):
        sampling = Sampling(**{"samples": 2, "max_tokens": 12, "stop_token_ids": (1,), "logprobs": True} | sampling)
        return engine.generate(run, version, prompts(count), list(range(count)), sampling)

    def keep_busy(tokens):
        if not idle:
            future = generate(None, 0, 1, max_tokens=tokens, stop_token_ids=())
            future.add_done_callback(lambda _: keep_busy(tokens))

    def note(name, run, version, future, samples=2):
        done.append((name, models[run, version] if run else models[None], samples, future.result(60)))

    push("block", 1)
    push("full", 1)
    for tokens in (150, 110):  # which end at the same step now and then, and hardly ever at a push
        keep_busy(tokens)
    base = generate(None, 0, 4, samples=3, max_tokens=100)
    note("first", "block", 1, generate("block", 1, 5))
    push("part", 1)
    several = {
        "block": generate("block", 1, 2, max_tokens=30),
        "full": generate("full", 1, 3, stop=("3", "ab")),
        "part": generate("part", 1, 3),
    }
    for run, future in several.items():
        note(f"{run} among others", run, 1, future)
    note("base", None, 0, base, samples=3)
    orphan = generate("block", 1, 6, max_tokens=150, stop_token_ids=())
    push("block", 2)
    with pytest.raises(StaleWeights, match="replaced meanwhile"):
        orphan.result(60)
    note("second version", "block", 2, generate("block", 2, 5))
    engine.drop("full").result(60)
    push("same-block", 1)
    both = generate("same-block", 1, 3), generate("block", 2, 2)
    note("same block", "same-block", 1, both[0])
    note("beside it", "block", 2, both[1])
    idle.append(True)
    orphan = generate("part", 1, 3, max_tokens=150, stop_token_ids=())
    engine.sleep().result(60)
    with pytest.raises(StaleWeights, match="put to sleep"):
        orphan.result(60)
    push("part", 2)
    engine.wake().result(60)
    note("after sleep", "part", 2, generate("part", 2, 3))
    return done


def test_responses_are_those_of_the_synchronous_engine(folder, ahead, models):
    """Four runs and the base, pushed, dropped, aborted and put to sleep while others generate, row counts that change,
    prefixes that are shared, stop strings: token by token as without, and each run within 1e-5 of its own weights. Most
    batches are scheduled while one is in flight, and none is when weights change."""
    core, remote = ahead._core, ahead._engine.collective_rpc
    in_flight, changes = [], []
    schedule = core.scheduler.schedule

    def scheduled(*args):
        in_flight.append(len(core.batch_queue))
        return schedule(*args)

    def called(method, *args, **kwargs):
        changes.append((len(core.batch_queue), ahead._engine.has_unfinished_requests()))
        return remote(method, *args, **kwargs)

    with patch.object(core.scheduler, "schedule", scheduled), patch.object(ahead._engine, "collective_rpc", called):
        seen = play(ahead, models)
    for (name, model, samples, done), (_, _, _, without) in zip(seen, play(start(folder, False), models), strict=True):
        np.testing.assert_array_equal(done.tokens, without.tokens, err_msg=name)
        np.testing.assert_array_equal(done.finished, without.finished, err_msg=name)
        assert worst(model, prompts(len(done.lengths) // samples), done, samples) < 1e-5, name
    assert len(seen) == 9
    assert sum(in_flight) > 0.8 * len(in_flight)
    assert [queued for queued, _ in changes if queued] == []
    assert sum(busy for _, busy in changes) >= 2
    assert not core.is_scheduler_paused()


def test_the_self_check_runs_ahead_too_and_sees_swapped_runs(folder, ahead):
    from layersweep.rollout.engine.selfcheck import RoutingMismatch, check
    from tests.rollout.engine.faults import first_two_swapped, in_routing

    assert check(ahead, folder, "float32") < 1e-5
    with in_routing(first_two_swapped), pytest.raises(RoutingMismatch, match="rounding explains"):
        check(ahead, folder, "float32")


def test_an_error_in_a_batch_that_was_in_flight_ends_every_call(folder, models):
    """It shows when the batch is waited for, in a push: that, what was being generated, and later calls are told."""
    engine = start(folder, True)
    step, steps = engine._engine.step, []

    def broken():
        steps.append(1)
        if engine._core.is_scheduler_paused():
            raise RuntimeError("an illegal memory access was encountered")
        return step()

    with patch.object(engine._engine, "step", broken):
        going_on = engine.generate(None, 0, prompts(4), list(range(4)), Sampling(4, max_tokens=180))
        while not steps:
            pass
        push = engine.push("block", 1, trained(models["block", 1], RUNS["block"]))
        later = engine.generate(None, 0, prompts(1), [0], Sampling(1, max_tokens=4))
        for call in (push, going_on, later):
            with pytest.raises(EngineStopped, match="illegal memory access"):
                call.result(60)
    with pytest.raises(EngineStopped):
        engine.stuck_for()


def test_an_engine_on_cpus_refuses_it():
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.arguments import engine_args

    with pytest.raises(ValueError, match=r"rollout.async_scheduling: this engine has no GPU"):
        engine_args("nowhere", "Qwen3ForCausalLM", RolloutConfig(async_scheduling=True), "float32", 0)


def test_it_is_never_turned_off_without_a_word(monkeypatch):
    """As vLLM does on platforms and executors that have none."""
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine import engine as module

    core = SimpleNamespace(batch_queue=None)
    made = SimpleNamespace(engine_core=SimpleNamespace(engine_core=core))
    monkeypatch.setattr(module, "engine_args", lambda *_: None)
    monkeypatch.setattr(module.LLMEngine, "from_engine_args", lambda _: made)
    with pytest.raises(RuntimeError, match=r"rollout.async_scheduling: vLLM does not schedule as asked for"):
        module.RolloutEngine("", "Qwen3ForCausalLM", RolloutConfig(async_scheduling=True), "float32", seed=0)
