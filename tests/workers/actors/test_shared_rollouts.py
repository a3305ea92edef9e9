"""First batches of the base, which the sweeps of a spec with factors share."""

import asyncio

import numpy as np
import pytest

from layersweep.rollout.tasks.demo.sort_digits import SortDigitsConfig
from layersweep.rollout.types import Completions
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.config import TrainingConfig
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from layersweep.workers.storage.completions import CompletionStore


class RandomEngine:
    """An engine with log-probabilities, that samples digits anew each time it is asked.

    `generate.remote` is awaited as a Ray actor's method is.
    """

    def __init__(self):
        self.asked, self.generate = [], self

    async def remote(self, run, version, tokens, seeds, sampling):
        self.asked.append((run, version, seeds, sampling))
        rng = np.random.default_rng(len(self.asked))
        lengths = rng.integers(1, 8, len(tokens) * sampling.samples).astype(np.int32)
        count = int(lengths.sum())
        logprobs = rng.standard_normal(count).astype(np.float32)
        return Completions(rng.integers(0, 10, count).astype(np.int32), logprobs, lengths, lengths < 7, version, 1.0)


@pytest.fixture
def sharing(tmp_path):
    """A function that makes a worker of a sweep; those of one `engine` text share."""
    character_tokenizer("0123456789=").save_pretrained(tmp_path / "model")

    def make(engine="tiny, float32", rounds=1, steps=1, **training):
        config = TrainingConfig(max_response_tokens=7, prompts_per_step=8, group_size=4, **training)
        store = CompletionStore(str(tmp_path / "first"), engine, steps)
        source = ModelSource(str(tmp_path / "model"))
        return RolloutWorker(source, SortDigitsConfig(digits=6), [], config, None, None, rounds, store)

    return make


def batch(worker, engine, run=None, version=0, seed=0, step=0):
    return asyncio.run(worker.experience(engine, run, version, seed, step))


def test_a_sweep_takes_the_first_batch_of_another(sharing):
    """Bit for bit, though the engine would answer otherwise the second time; without the first one's seconds."""
    engine = RandomEngine()
    one, other = batch(sharing(), engine), batch(sharing(learning_rate=1e-4), engine)
    assert len(engine.asked) == 1
    for name in ("tokens", "logprobs", "lengths", "reward", "group", "truncated", "format_ok"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype and first.tobytes() == second.tobytes()
    assert all(map(np.array_equal, one.prompts, other.prompts)) and other.version == 0
    assert (one.seconds["generate_cpu_seconds"], other.seconds["generate_cpu_seconds"]) == (1.0, 0.0)


def test_dynamic_sampling_begins_with_the_same_groups(sharing):
    """Its first round asks for the same prompts; only what it replaces is generated."""
    engine = RandomEngine()
    batch(sharing(), engine)
    batch(sharing(rounds=3), engine)
    assert [len(seeds) for _, _, seeds, _ in engine.asked][0] == 8
    assert len({tuple(seeds) for _, _, seeds, _ in engine.asked}) == len(engine.asked)


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "tiny, bfloat16"}, {"temperature": 0.5}, {"max_response_tokens": 6}, {"prompts_per_step": 4},
        {"stop": ("1",)},
    ],
)  # fmt: skip
def test_another_batch_is_generated(sharing, tmp_path, other):
    engine = RandomEngine()
    batch(sharing(), engine)
    worker = sharing(other.get("engine", "tiny, float32"))
    worker.training = worker.training.model_copy(update={k: v for k, v in other.items() if k != "engine"})
    batch(worker, engine)
    assert len(engine.asked) == 2 and len(list((tmp_path / "first").iterdir())) == 2


def test_only_first_batches_of_the_base_are_shared(sharing, tmp_path):
    """Not those of another seed or step, not those of a trained run, and none beyond the steps that all have."""
    engine = RandomEngine()
    for _ in range(2):
        for seed, step in ((0, 0), (1, 0), (0, 1), (0, 2)):
            batch(sharing(steps=2), engine, seed=seed, step=step)
        batch(sharing(steps=2), engine, "layer-02-seed0", 1, step=1)
    assert len(engine.asked) == 5 + 2 and len(list((tmp_path / "first").iterdir())) == 3


def test_a_damaged_batch_is_generated_once_more(sharing, tmp_path):
    engine = RandomEngine()
    batch(sharing(), engine)
    (file,) = (tmp_path / "first").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = batch(sharing(), engine)
    file.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    batch(sharing(), engine)
    assert len(engine.asked) == 3 and again.lengths.shape == (32,)
