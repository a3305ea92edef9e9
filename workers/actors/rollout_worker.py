"""The rollout worker as a Ray actor: from prompts to experience and scores, around the engine."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from layersweep.policies.selection import parse_run_name
from layersweep.policies.strict import StrictModel
from layersweep.rollout.config import SuiteConfig
from layersweep.rollout.data.prompt_data import decontaminate_across
from layersweep.rollout.data.window import Drawn, draw_fitting, fit_prompts, prompt_uses
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
    reward_columns,
    seeds_for,
    verdict_columns,
)
from layersweep.workers.config import TrainingConfig
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.storage.completions import CompletionStore
from layersweep.workers.storage.responses import TRAIN, ResponseKeeper, question_of
from layersweep.workers.storage.retries import retried

from .portable_errors import portable_errors

logger = logging.getLogger(__name__)


@portable_errors
class RolloutWorker:
    """Tokenizes prompts, asks the engine, decodes and scores, all off the engine's and the trainers' processes.

    Args:
        model: the base, for its tokenizer and stop tokens.
        task: the section of the spec that is trained on.
        suites: the evaluation suites.
        training: the spec's section.
        window: tokens of a prompt and its response at most; None is as many as the engine takes.
        keeper: keeps responses; None keeps none.
        max_num_gen_batches: of the spec's algorithm.
        first_rollouts: what other sweeps share of the base's first batches; None shares nothing.

    Raises:
        DataError: the prompts cannot be read; DataUnavailable, an OSError too, after several attempts.
    """

    def __init__(
        self,
        model: ModelSource,
        task: StrictModel,
        suites: Sequence[SuiteConfig],
        training: TrainingConfig,
        window: int | None = None,
        keeper: ResponseKeeper | None = None,
        max_num_gen_batches: int = 1,
        first_rollouts: CompletionStore | None = None,
    ):
        self.training, self.window, self.keeper = training, window, keeper
        self.max_num_gen_batches, self.first_rollouts = max_num_gen_batches, first_rollouts
        self.encoder = PromptEncoder(
            model.here(), model.trust_remote_code, model.chat_template, model.template_arguments
        )
        self.tokenizer, self.stop_token_ids = self.encoder.tokenizer, self.encoder.stop_token_ids
        self.task = retried("reading the prompts", task.build)
        self.suites = {suite.name: suite for suite in suites}
        self.suite_tasks = {
            suite.name: retried(f"reading the prompts of {suite.name}", suite.task.build) if suite.task else self.task
            for suite in suites
        }
        decontaminate_across(self.task, self.suite_tasks.values())
        self._fit_to_window(suites)

    def __repr__(self) -> str:
        return "RolloutWorker()"

    async def alive(self) -> None:
        """Answer a health check."""

    async def rollout(self, *args: Any) -> tuple[list[str], Experience]:
        """Return (notices, experience). The driver waits for the notices, and the experience is not sent to it."""
        experience = await self.experience(*args)
        return self._notices(), experience

    async def experience(self, engine: Any, run: str | None, version: int, seed: int, step: int) -> Experience:
        """Make one training batch: `prompts_per_step` prompts, `group_size` responses each, scored.

        Prompts and sampling seeds follow from sweep seed and step alone, so all runs of a seed see the same. Dynamic
        sampling replaces prompts, as many as the run needs, by the first of a list that is the same for all too.
        """
        make = self._episodes if getattr(self.task, "multi_turn", False) else self._responses
        return await make(engine, run, version, seed, step)

    def _training_sampling(self, samples: int) -> Sampling:
        """Return the request for so many responses to each prompt of a training batch."""
        return Sampling(
            samples=samples,
            temperature=self.training.temperature,
            max_tokens=self.training.max_response_tokens,
            stop_token_ids=self.stop_token_ids,
            stop=self.training.stop,
            logprobs=True,
        )

    async def _episodes(self, engine: Any, run: str | None, version: int, seed: int, step: int) -> Experience:
        """Make a training batch of episodes."""
        training, began = self.training, time.perf_counter()
        scope, sampling = ("train", seed, step), self._training_sampling(1)
        starts = self.task.prompts("train", training.prompts_per_step, seed=_batch_seed(seed, step))
        played = await self._play(engine, run, version, self.task, starts, training.group_size, sampling, scope)
        seconds = {
            "rollout_seconds": time.perf_counter() - began,
            "reward_seconds": 0.0,  # environments answer while others' responses are generated
            "generate_cpu_seconds": played.generate_cpu_seconds,
            "reward_cpu_seconds": played.environment_cpu_seconds,
        }
        await self._keep(run, seed, step, TRAIN, None, self.task, starts, played.texts(self.task.config),
                         vars(played.scores()))  # fmt: skip
        return replace(played.experience(), seconds=seconds)

    async def _responses(self, engine: Any, run: str | None, version: int, seed: int, step: int) -> Experience:
        """Make a training batch of single responses."""
        training, sampling = self.training, self._training_sampling(self.training.group_size)
        seconds = dict.fromkeys(
            ("rollout_seconds", "reward_seconds", "generate_cpu_seconds", "reward_cpu_seconds"), 0.0
        )
        drawn: list[Drawn] = []
        kept: list[tuple[Sequence[Prompt], list[str], dict[str, np.ndarray]]] = []

        def draw(batch: int) -> list[Prompt]:
            batch_seed = _batch_seed(seed, step, batch)
            drawn.append(self._draw(self.task, "train", training.prompts_per_step, batch_seed, sampling))
            return drawn[-1].prompts

        async def generate(prompts: Sequence[Prompt]) -> list[ResponseGroup]:
            began = time.perf_counter()
            known = dict(zip((prompt.id for prompt in drawn[-1].prompts), drawn[-1].tokens, strict=True))
            tokens = [np.array(known[prompt.id], np.int32) for prompt in prompts]
            seeds = seeds_for([prompt.id for prompt in prompts], "train", seed, step)
            shared = self.first_rollouts
            if run is not None or shared is None or step >= shared.steps:
                done: Completions = await engine.generate.remote(run, version, tokens, seeds, sampling)
            elif (done := await asyncio.to_thread(shared.read, tokens, seeds, sampling)) is None:
                done = await engine.generate.remote(run, version, tokens, seeds, sampling)
                await asyncio.to_thread(shared.write, tokens, seeds, sampling, done)
            generated = time.perf_counter()
            texts, scores, cpu = await self._score(self.task, prompts, done, sampling, training.group_size)
            kept.append((prompts, texts, vars(_scored(prompts, done, scores, training.group_size))))
            spent = (generated - began, time.perf_counter() - generated, done.cpu_seconds, cpu)
            seconds.update({name: seconds[name] + more for name, more in zip(seconds, spent, strict=True)})
            return response_groups(tokens, done, scores)

        groups, discarded = await sample_groups(draw, generate, training.prompts_per_step, self.max_num_gen_batches)
        prompts = [prompt for asked, _, _ in kept for prompt in asked]
        texts = [text for _, written, _ in kept for text in written]
        columns = {name: np.concatenate([scored[name] for _, _, scored in kept]) for name in kept[0][2]}
        await self._keep(run, seed, step, TRAIN, None, self.task, prompts, texts, columns)
        experience = group_experience(groups, version)
        metrics = experience.metrics | {"overlong_prompts": sum(batch.replaced for batch in drawn)}
        if self.max_num_gen_batches > 1:
            metrics["discarded_tokens"] = discarded
        rewards = reward_columns([score for group in groups for score in group.scores])
        metrics |= {name: float(np.nanmean(values)) for name, values in rewards.items()}
        return replace(experience, seconds=seconds, metrics=metrics)

    async def evaluation(self, *args: Any) -> tuple[list[str], dict[str, np.ndarray]]:
        """Return (notices, scores). The driver waits for the notices, and the scores are not sent to it."""
        scores = await self.evaluate(*args)
        return self._notices(), scores

    async def evaluate(
        self, engine: Any, run: str | None, version: int, suite_name: str, split: Split, seed: int, samples: int,
        greedy: bool = False,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Return columns of scores.parquet, one row per response, for one suite.

        Sampling seeds are common to all runs.
        """
        suite, task = self.suites[suite_name], self.suite_tasks[suite_name]
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
        asked = suite.prompts if split == "selection" else suite.final_prompts
        drawn = None if multi_turn else self._draw(task, split, asked, 0, sampling)
        prompts = drawn.prompts if drawn else task.prompts(split, asked)
        count = len(prompts) * samples
        named = {
            "suite": np.full(count, f"{suite_name}@greedy" if greedy else suite_name, object),
            "split": np.full(count, split, object),
            "counts": np.full(count, suite.counts and not greedy),
        }
        if drawn is None:
            played = await self._play(engine, run, version, task, prompts, samples, sampling, scope)
            scored = played.scores()
            await self._keep(run, seed, version, split, named["suite"][0], task, prompts, played.texts(task.config),
                             vars(scored))  # fmt: skip
            return named | vars(scored)
        tokens = [np.array(prompt, np.int32) for prompt in drawn.tokens]
        seeds = seeds_for([prompt.id for prompt in prompts], *scope)
        done: Completions = await engine.generate.remote(run, version, tokens, seeds, sampling)
        texts, scores, _ = await self._score(task, prompts, done, sampling, samples)
        columns = vars(_scored(prompts, done, scores, samples)) | reward_columns(scores)
        await self._keep(run, seed, version, split, named["suite"][0], task, prompts, texts, columns)
        return named | columns

    def _notices(self) -> list[str]:
        """Return what tasks have to tell the user since the last call."""
        tasks = {id(task): task for task in (self.task, *self.suite_tasks.values())}
        return [notice for task in tasks.values() if hasattr(task, "notices") for notice in task.notices()]

    async def _keep(
        self, run: str | None, seed: int, step: int, split: str, suite: str | None, task: Any, prompts: Sequence[Any],
        texts: list[str], scored: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        """Keep responses, where the spec wants them kept. One that cannot be written costs no evaluation.

        Args:
            run: None is the base.
            texts, scored: of the responses, in the same order; columns as for scores.parquet.
        """
        keeper = self.keeper
        if keeper is None or not keeper.wants(split, step):
            return
        selection = parse_run_name(run)[0] if run else "base"
        multi_turn = getattr(task, "multi_turn", False)
        questions = {prompt.id: prompt.id if multi_turn else question_of(prompt) for prompt in prompts}
        names = ("prompt", "sample", "score", "answer", "response_tokens", "truncated", "format_ok")
        columns = {name: scored[name] for name in names} | {
            "question": [questions[name] for name in scored["prompt"]],
            "response": texts,
        }
        try:
            await asyncio.to_thread(keeper.write, selection, seed, step, split, suite, columns)
            if suite is not None and not multi_turn:
                await asyncio.to_thread(keeper.write_prompts, split, suite, prompts)
        except (OSError, TypeError, ValueError) as error:  # a full disk; a truth that is no plain data
            logger.warning("responses of %s at step %d are not kept: %s", run or "the base", step, error)

    async def _play(
        self, engine: Any, run: str | None, version: int, task: Any, starts: Sequence[InitialState], samples: int,
        sampling: Sampling, scope: tuple[object, ...],
    ) -> EpisodeBatch:  # fmt: skip
        """Play episodes of an environment section; `sampling` is of one response each."""

        async def generate(prompts: list[np.ndarray], seeds: list[int]) -> Completions:
            return await engine.generate.remote(run, version, prompts, seeds, sampling)

        decode = partial(self._decode, stop=sampling.stop)
        return await play(task, starts, samples, generate, self._encode, decode, scope)

    def _decode(self, responses: Sequence[np.ndarray], stop: Sequence[str]) -> list[str]:
        """Return texts of responses without special tokens, cut at the first stop string."""
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        return [cut_at_stop(text, stop, self.training.include_stop) for text in texts] if stop else texts

    def _draw(self, task: Any, split: Split, count: int, seed: int, sampling: Sampling) -> Drawn:
        """Draw prompts that leave room for a response; see `draw_fitting`."""
        limit = None if self.window is None else self.window - sampling.max_tokens
        return draw_fitting(task, split, count, seed, self.encoder.encode_all, limit)

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
    ) -> tuple[list[str], list[Score], float]:
        """Return texts and scores in the responses' order, and the CPU seconds of this process that scoring took."""
        texts = self._decode(done.responses(), sampling.stop)
        responses = [Response(text, bool(end)) for text, end in zip(texts, done.finished, strict=True)]
        asked = [prompts[i // samples] for i in range(len(responses))]
        return texts, *await asyncio.to_thread(_timed_score, task, asked, responses)


def cut_at_stop(text: str, stop: Sequence[str], include: bool) -> str:
    """Cut a response at the stop string that ends first, which stays in the text with `include`.

    The response's last token completes the stop string and may hold more text after it.
    """
    ends = [(at + len(string), at) for string in stop if (at := text.find(string)) >= 0]
    if not ends:
        return text
    end, start = min(ends)
    return text[: end if include else start]


def _scored(prompts: Sequence[Prompt], done: Completions, scores: list[Score], samples: int) -> ScoredResponses:
    count = len(scores)
    return ScoredResponses(
        prompt=np.array([prompt.id for prompt in prompts], object).repeat(samples),
        sample=np.tile(np.arange(samples), len(prompts)),
        response_tokens=done.lengths,
        truncated=~done.finished,
        category=np.full(count, None),
        losses=np.zeros(count, np.int64),
        **verdict_columns(scores),
    )


def _timed_score(task: Any, prompts: Sequence[Prompt], responses: Sequence[Response]) -> tuple[list[Score], float]:
    began = time.thread_time()
    return task.score(prompts, responses), time.thread_time() - began


def _batch_seed(seed: int, step: int, batch: int = 0) -> int:
    """Number of the prompts of a step; with dynamic sampling of its further batches, beyond those of all steps."""
    return (batch * 1_000_003 + seed) * 1_000_003 + step
