"""The rollout worker as a Ray actor: from prompts to experience and scores, around the engine."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from layersweep.policies.strict import StrictModel
from layersweep.rollout.config import SuiteConfig
from layersweep.rollout.data.prompt_data import decontaminate_across
from layersweep.rollout.data.window import fit_prompts, prompt_uses
from layersweep.rollout.dynamic_sampling import ResponseGroup, group_experience, response_groups, sample_groups
from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.episodes import EpisodeBatch, play
from layersweep.rollout.prompt_encoder import PromptEncoder
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
from layersweep.workers.startup.model_source import ModelSource

from .portable_errors import portable_errors


@portable_errors
class RolloutWorker:
    """Tokenizes prompts, asks the engine, decodes and scores, all off the engine's and the trainers' processes.

    Args:
        model: the base, for its tokenizer and stop tokens.
        task: the section of the spec that is trained on.
        suites: the evaluation suites.
        training: the spec's section.
        window: tokens of a prompt and its response at most; None is as many as the engine takes.
        max_num_gen_batches: of the spec's algorithm.
    """

    def __init__(
        self,
        model: ModelSource,
        task: StrictModel,
        suites: Sequence[SuiteConfig],
        training: TrainingConfig,
        window: int | None = None,
        max_num_gen_batches: int = 1,
    ):
        self.training, self.window, self.max_num_gen_batches = training, window, max_num_gen_batches
        self.encoder = PromptEncoder(
            model.here(), model.trust_remote_code, model.chat_template, model.template_arguments
        )
        self.tokenizer, self.stop_token_ids = self.encoder.tokenizer, self.encoder.stop_token_ids
        self.task = task.build()
        self.suites = {suite.name: suite for suite in suites}
        self.suite_tasks = {suite.name: suite.task.build() if suite.task else self.task for suite in suites}
        decontaminate_across(self.task, self.suite_tasks.values())
        self._fit_to_window(suites)

    def __repr__(self) -> str:
        return "RolloutWorker()"

    async def alive(self) -> None:
        """Answer a health check."""

    async def rollout(self, *args: Any) -> tuple[None, Experience]:
        """Return (None, experience). The driver waits for the None, and the experience is not sent to its process."""
        return None, await self.experience(*args)

    async def experience(self, engine: Any, run: str | None, version: int, seed: int, step: int) -> Experience:
        """Make one training batch: `prompts_per_step` prompts, `group_size` responses each, scored.

        Prompts and sampling seeds follow from sweep seed and step alone, so all runs of a seed see the same. Dynamic
        sampling replaces prompts, as many as the run needs, by the first of a list that is the same for all too.
        """
        training, began = self.training, time.perf_counter()

        def draw(batch: int) -> list[Prompt]:
            return self.task.prompts("train", training.prompts_per_step, seed=_batch_seed(seed, step, batch))

        multi_turn = getattr(self.task, "multi_turn", False)
        sampling = Sampling(
            samples=1 if multi_turn else training.group_size,
            temperature=training.temperature,
            max_tokens=training.max_response_tokens,
            stop_token_ids=self.stop_token_ids,
            stop=training.stop,
            logprobs=True,
        )
        if multi_turn:
            scope = ("train", seed, step)
            played = await self._play(engine, run, version, self.task, draw(0), training.group_size, sampling, scope)
            seconds = {
                "rollout_seconds": time.perf_counter() - began,
                "reward_seconds": 0.0,  # environments answer while others' responses are generated
                "generate_cpu_seconds": played.generate_cpu_seconds,
                "reward_cpu_seconds": played.environment_cpu_seconds,
            }
            return replace(played.experience(), seconds=seconds)
        seconds = dict.fromkeys(
            ("rollout_seconds", "reward_seconds", "generate_cpu_seconds", "reward_cpu_seconds"), 0.0
        )

        async def generate(prompts: Sequence[Prompt]) -> list[ResponseGroup]:
            began, tokens = time.perf_counter(), [self._encode(prompt) for prompt in prompts]
            seeds = seeds_for([prompt.id for prompt in prompts], "train", seed, step)
            done: Completions = await engine.generate.remote(run, version, tokens, seeds, sampling)
            generated = time.perf_counter()
            scores, cpu = await self._score(self.task, prompts, done, sampling, training.group_size)
            spent = (generated - began, time.perf_counter() - generated, done.cpu_seconds, cpu)
            seconds.update({name: seconds[name] + more for name, more in zip(seconds, spent, strict=True)})
            return response_groups(tokens, done, scores)

        groups, discarded = await sample_groups(draw, generate, training.prompts_per_step, self.max_num_gen_batches)
        experience = group_experience(groups, version)
        costs = {"discarded_tokens": discarded} if self.max_num_gen_batches > 1 else {}
        return replace(experience, seconds=seconds, metrics=experience.metrics | costs)

    async def evaluation(self, *args: Any) -> tuple[None, dict[str, np.ndarray]]:
        """Return (None, scores). The driver waits for the None, so that the scores are not sent to its process."""
        return None, await self.evaluate(*args)

    async def evaluate(
        self, engine: Any, run: str | None, version: int, suite_name: str, split: Split, seed: int, samples: int,
        greedy: bool = False,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Return columns of scores.parquet, one row per response, for one suite.

        Sampling seeds are common to all runs.
        """
        suite, task = self.suites[suite_name], self.suite_tasks[suite_name]
        prompts = task.prompts(split, suite.prompts if split == "selection" else suite.final_prompts)
        samples = 1 if greedy or suite.temperature == 0 else samples  # greedy responses are all the same
        multi_turn = getattr(task, "multi_turn", False)
        sampling = Sampling(
            samples=1 if multi_turn else samples,
            temperature=0.0 if greedy else suite.temperature,
            max_tokens=suite.max_response_tokens or self.training.max_response_tokens,
            stop_token_ids=self.stop_token_ids,
            stop=self.training.stop if suite.stop is None else suite.stop,
            top_p=suite.top_p,
            top_k=suite.top_k,
            min_p=suite.min_p,
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
        scores, _ = await self._score(task, prompts, done, sampling, samples)
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
        """Play episodes of an environment section; `sampling` is of one response each."""

        async def generate(prompts: list[np.ndarray], seeds: list[int]) -> Completions:
            return await engine.generate.remote(run, version, prompts, seeds, sampling)

        def encode(text: str) -> np.ndarray:
            messages = ({"role": "user", "content": text},) if task.config.chat else None
            return self._encode(Prompt("", text, messages))

        return await play(task, starts, samples, generate, encode, partial(self._decode, stop=sampling.stop), scope)

    def _decode(self, responses: Sequence[np.ndarray], stop: Sequence[str]) -> list[str]:
        """Texts of responses without special tokens, cut at the first stop string."""
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [cut_at_stop(text, stop, self.training.include_stop) for text in texts] if stop else texts

    def _encode(self, prompt: Prompt) -> np.ndarray:
        return np.array(self.encoder.encode(prompt), np.int32)

    def _fit_to_window(self, suites: Sequence[SuiteConfig]) -> None:
        """Drop the prompts that the plan counted as dropped, and limit episodes.

        What the plan refuses does not come this far, so data sets that drop nothing are not counted again.
        """
        pairs = [(suite, self.suite_tasks[suite.name]) for suite in suites]
        uses = prompt_uses(self.task, pairs, self.training.prompts_per_step, self.training.max_response_tokens)
        changing = [
            use
            for use in uses
            if getattr(use.task, "multi_turn", False) or (hasattr(use.task, "data") and use.task.data.drops_overlong)
        ]
        if self.window is not None:
            fit_prompts(changing, self.encoder.encode_all, self.window)

    async def _score(
        self, task: Any, prompts: Sequence[Prompt], done: Completions, sampling: Sampling, samples: int
    ) -> tuple[list[Score], float]:
        """Return scores in the responses' order, and the CPU seconds of this process that they took."""
        texts = self._decode(done.responses(), sampling.stop)
        responses = [Response(text, bool(end)) for text, end in zip(texts, done.finished, strict=True)]
        asked = [prompts[i // samples] for i in range(len(responses))]
        return await asyncio.to_thread(_timed_score, task, asked, responses)


def cut_at_stop(text: str, stop: Sequence[str], include: bool) -> str:
    """Cut a response at the stop string that ends first, which stays in the text with `include`.

    The response's last token completes the stop string and may hold more text after it.
    """
    ends = [(at + len(string), at) for string in stop if (at := text.find(string)) >= 0]
    if not ends:
        return text
    end, start = min(ends)
    return text[: end if include else start]


def _timed_score(task: Any, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[list[Score], float]:
    began = time.thread_time()
    return task.score(prompts, responses), time.thread_time() - began


def _batch_seed(seed: int, step: int, batch: int = 0) -> int:
    """Number of the prompts of a step; with dynamic sampling of its further batches, beyond those of all steps."""
    return (batch * 1_000_003 + seed) * 1_000_003 + step
