"""The rollout worker as a Ray actor: from prompts to experience and scores, around the engine."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from layersweep.policies.strict import StrictModel
from layersweep.rollout.config import SuiteConfig
from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.episodes import EpisodeBatch, play
from layersweep.rollout.types import (
    Completions,
    Experience,
    Prompt,
    Response,
    Sampling,
    Score,
    ScoredResponses,
    Split,
    seeds_for,
)
from layersweep.workers.config import TrainingConfig
from layersweep.workers.startup.tiny_model import ModelSource


class RolloutWorker:
    """Tokenizes prompts, asks the engine, decodes and scores, all off the engine's and the trainers' processes.

    Args:
        model: the base, for its tokenizer and stop tokens.
        task: the section of the spec that is trained on.
        suites: the evaluation suites.
        training: the spec's section.
    """

    def __init__(self, model: ModelSource, task: StrictModel, suites: Sequence[SuiteConfig], training: TrainingConfig):
        self.training = training
        self.tokenizer, self.stop_token_ids = load_tokenizer(model.here())
        self.task = task.build()
        self.suites = {suite.name: suite for suite in suites}
        self.suite_tasks = {suite.name: suite.task.build() if suite.task else self.task for suite in suites}
        self.contaminated = _decontaminate(self.task, self.suite_tasks.values())

    def __repr__(self) -> str:
        return "RolloutWorker()"

    async def alive(self) -> None:
        """Answers while this actor does."""

    async def rollout(self, *args: Any) -> tuple[None, Experience]:
        """`experience`, after a nothing that a driver can wait for without having all of it sent."""
        return None, await self.experience(*args)

    async def experience(self, engine: Any, run: str | None, version: int, seed: int, step: int) -> Experience:
        """One training batch: `prompts_per_step` prompts, `group_size` responses each, scored.

        Prompts and sampling seeds follow from sweep seed and step alone, so all runs of a seed see the same.
        """
        training, began = self.training, time.perf_counter()
        prompts = self.task.prompts("train", training.prompts_per_step, seed=_batch_seed(seed, step))
        multi_turn = getattr(self.task, "multi_turn", False)
        sampling = Sampling(
            samples=1 if multi_turn else training.group_size,
            temperature=training.temperature,
            max_tokens=training.max_response_tokens,
            stop_token_ids=self.stop_token_ids,
            logprobs=True,
        )
        if multi_turn:
            scope = ("train", seed, step)
            played = await self._play(engine, run, version, self.task, prompts, training.group_size, sampling, scope)
            seconds = {
                "rollout_seconds": time.perf_counter() - began,
                "reward_seconds": 0.0,  # environments answer while others' responses are written
                "generate_cpu_seconds": played.generate_cpu_seconds,
                "reward_cpu_seconds": played.environment_cpu_seconds,
            }
            return replace(played.experience(), seconds=seconds)
        tokens = [self._encode(prompt) for prompt in prompts]
        seeds = seeds_for([prompt.id for prompt in prompts], "train", seed, step)
        done: Completions = await engine.generate.remote(run, version, tokens, seeds, sampling)
        generated = time.perf_counter()
        scores, cpu = await self._score(self.task, prompts, done, training.group_size)
        rows = np.arange(len(done.lengths))
        return Experience(
            prompts=[tokens[row // training.group_size] for row in rows],
            tokens=done.tokens,
            logprobs=done.logprobs,
            lengths=done.lengths,
            reward=np.array([score.reward for score in scores], np.float32),
            group=rows // training.group_size,
            trajectory=rows,
            step=np.zeros_like(rows),
            truncated=~done.finished,
            format_ok=np.array([score.format_ok for score in scores]),
            version=done.version,
            seconds={
                "rollout_seconds": generated - began,
                "reward_seconds": time.perf_counter() - generated,
                "generate_cpu_seconds": done.cpu_seconds,
                "reward_cpu_seconds": cpu,
            },
        )

    async def evaluation(self, *args: Any) -> tuple[None, dict[str, np.ndarray]]:
        """`evaluate`, after a nothing that a driver can wait for without having all of it sent."""
        return None, await self.evaluate(*args)

    async def evaluate(
        self, engine: Any, run: str | None, version: int, suite_name: str, split: Split, seed: int, samples: int,
        greedy: bool = False,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Columns of scores.parquet, one row per response, for one suite. Sampling seeds are common to all runs."""
        suite, task = self.suites[suite_name], self.suite_tasks[suite_name]
        prompts = task.prompts(split, suite.prompts if split == "selection" else suite.final_prompts)
        samples = 1 if greedy else samples
        multi_turn = getattr(task, "multi_turn", False)
        sampling = Sampling(
            samples=1 if multi_turn else samples,
            temperature=0.0 if greedy else suite.temperature,
            max_tokens=suite.max_response_tokens or self.training.max_response_tokens,
            stop_token_ids=self.stop_token_ids,
        )
        scope = ("evaluate", suite_name, split, seed)
        count = len(prompts) * samples
        named = {
            "suite": np.full(count, f"{suite_name}@greedy" if greedy else suite_name, object),
            "split": np.full(count, split, object),
        }
        if multi_turn:
            played = await self._play(engine, run, version, task, prompts, samples, sampling, scope)
            return named | vars(played.scores())
        tokens = [self._encode(prompt) for prompt in prompts]
        seeds = seeds_for([prompt.id for prompt in prompts], *scope)
        done: Completions = await engine.generate.remote(run, version, tokens, seeds, sampling)
        scores, _ = await self._score(task, prompts, done, samples)
        scored = ScoredResponses(
            prompt=np.array([prompt.id for prompt in prompts], object).repeat(samples),
            sample=np.tile(np.arange(samples), len(prompts)),
            score=np.array([score.reward for score in scores]),
            response_tokens=done.lengths,
            truncated=~done.finished,
            format_ok=np.array([score.format_ok for score in scores]),
            category=np.full(count, None),
            losses=np.zeros(count, np.int64),
        )
        return named | vars(scored)

    async def _play(
        self, engine: Any, run: str | None, version: int, task: Any, starts: Sequence[InitialState], samples: int,
        sampling: Sampling, scope: tuple[object, ...],
    ) -> EpisodeBatch:  # fmt: skip
        """Episodes of an environment section; `sampling` is of one response each."""

        async def generate(prompts: list[np.ndarray], seeds: list[int]) -> Completions:
            return await engine.generate.remote(run, version, prompts, seeds, sampling)

        def encode(text: str) -> np.ndarray:
            messages = ({"role": "user", "content": text},) if task.config.chat else None
            return self._encode(Prompt("", text, messages))

        decode = partial(self.tokenizer.batch_decode, skip_special_tokens=True)
        return await play(task, starts, samples, generate, encode, decode, scope)

    def _encode(self, prompt: Prompt) -> np.ndarray:
        if prompt.messages is not None:
            text = self.tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
            return np.array(self.tokenizer.encode(text, add_special_tokens=False), np.int32)
        return np.array(self.tokenizer.encode(prompt.text), np.int32)

    async def _score(
        self, task: Any, prompts: Sequence[Prompt], done: Completions, samples: int
    ) -> tuple[list[Score], float]:
        """Scores in the responses' order, and the CPU seconds of this process that they took."""
        texts = self.tokenizer.batch_decode(done.responses(), skip_special_tokens=True)
        responses = [Response(text, bool(end)) for text, end in zip(texts, done.finished, strict=True)]
        asked = [prompts[i // samples] for i in range(len(responses))]
        return await asyncio.to_thread(_timed_score, task, asked, responses)


def _decontaminate(task: Any, suites: Iterable[Any]) -> int:
    """Drop training questions that an evaluation suite over other data asks too; how many were dropped."""
    others = [suite.data for suite in suites if suite is not task and hasattr(suite, "data")]
    if not hasattr(task, "data") or not others:
        return 0
    return task.data.decontaminate(
        [text for data in others for split in ("selection", "final") for text in data.questions(split)]
    )


def _timed_score(task: Any, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[list[Score], float]:
    began = time.thread_time()
    return task.score(prompts, responses), time.thread_time() - began


def _batch_seed(seed: int, step: int) -> int:
    return seed * 1_000_003 + step


def load_tokenizer(model: str) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer and the tokens that end a response: the generation config's and the tokenizer's own."""
    if (Path(model) / "tokenizer.json").is_file():
        # The generic class reads tokenizer.json whole, and imports in a fifth of AutoTokenizer's time.
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    tokenizer = Loader.from_pretrained(model)
    stops = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        path = Path(model) / name
        if path.is_file():
            ends = json.loads(path.read_text()).get("eos_token_id")
            stops |= set(ends if isinstance(ends, list) else [ends])
    return tokenizer, tuple(sorted(stop for stop in stops if stop is not None))
