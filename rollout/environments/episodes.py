"""Episodes of several turns between a model and environments.

All episodes of a call are in flight together, in one asyncio task per environment process. Each task sends one batch of
prompts per turn and waits for its own environments alone: one that is slow or hangs delays no other task, and its own
for `step_seconds` at most. This module imports neither Ray nor vLLM nor a tokenizer.
"""

import asyncio
import json
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from layersweep.rollout.types import Completions, Experience, Prompt, ScoredResponses, stable_seed

from .base import EnvironmentConfig, EnvironmentTask, InitialState
from .process_pool import Call, EnvironmentLost, EnvironmentProcess, StepResult
from .tool_calls import calls_tool

logger = logging.getLogger(__name__)

Generate = Callable[[list[np.ndarray], list[int]], Awaitable[Completions]]
"""Function that returns one response to each prompt of token ids, sampled with the seed at the same position."""
Encode = Callable[[Prompt], np.ndarray]
Decode = Callable[[Sequence[np.ndarray]], list[str]]


@dataclass
class Turn:
    """One prompt, the model's response, and the environment's answer."""

    anchor: str
    """Key of the state before it."""
    observation: str
    prompt: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    finished: bool
    response: str
    action: str | None
    """Action in the response; None where none could be read."""
    valid: bool = False
    reward: float = 0.0
    """Reward of the environment, less the penalty of an invalid action."""


@dataclass
class Episode:
    """One trajectory from a start state."""

    start: InitialState
    group: int
    sample: int
    turns: list[Turn] = field(default_factory=list)
    category: str | None = None
    success: float = 0.0
    terminated: bool = False
    """Whether the environment's rules ended it; else a limit of turns or tokens did."""
    losses: int = 0
    """Times its environment was lost; after the first the episode is repeated, after the second given up."""
    number: int = -1
    state: StepResult | None = None

    @property
    def given_up(self) -> bool:
        """Whether the environment was lost twice."""
        return self.losses > 1


@dataclass(repr=False)
class EpisodeBatch:
    """The episodes of one call, group by group and in each sample by sample, with counts over all."""

    episodes: list[Episode]
    version: int = 0
    """Version of the weights that generated the responses."""
    cut_observations: int = 0
    generate_cpu_seconds: float = 0.0
    environment_cpu_seconds: float = 0.0

    def experience(self) -> Experience:
        """Make a row per turn. Episodes given up have none; their group is smaller by them.

        Raises:
            RuntimeError: no episode has a turn.
        """
        kept = [(number, e) for number, e in enumerate(self.episodes) if e.turns and not e.given_up]
        if not kept:
            raise RuntimeError(
                "no episode has a turn to learn from: environments were lost twice each (the log has the reasons), "
                "or the first prompt is longer than max_prompt_tokens"
            )
        turns = [turn for _, e in kept for turn in e.turns]
        lengths = [len(e.turns) for _, e in kept]
        group = np.repeat([e.group for _, e in kept], lengths)
        anchor = [turn.anchor for turn in turns]
        return Experience(
            prompts=[turn.prompt for turn in turns],
            tokens=np.concatenate([turn.tokens for turn in turns]),
            logprobs=np.concatenate([turn.logprobs for turn in turns]),
            lengths=np.array([len(turn.tokens) for turn in turns], np.int32),
            reward=np.array([turn.reward for turn in turns], np.float32),
            group=group,
            trajectory=np.repeat([number for number, _ in kept], lengths),
            step=np.concatenate([np.arange(length) for length in lengths]),
            truncated=~np.array([turn.finished for turn in turns]),
            format_ok=np.array([turn.valid for turn in turns]),
            anchor=anchor,
            version=self.version,
            metrics={
                "success_rate": float(np.mean([e.success for _, e in kept])),
                "episode_length": float(np.mean(lengths)),
                "invalid_action_rate": float(np.mean([not turn.valid for turn in turns])),
                "step_groups_larger_than_one": _shared_fraction(group, anchor),
                "lost_episodes": sum(e.losses for e in self.episodes),
                "given_up_episodes": sum(e.given_up for e in self.episodes),
                "cut_observations": self.cut_observations,
            },
        )

    def texts(self, config: EnvironmentConfig) -> list[str]:
        """Write out each episode's turns, as a prompt's history shows them."""
        return [
            "".join(config.turn_template.format(observation=t.observation, action=t.action or "") for t in e.turns)
            for e in self.episodes
        ]

    def scores(self) -> ScoredResponses:
        """Make a row per episode. One that was given up (losses: 2) counts as failed."""
        episodes = self.episodes
        return ScoredResponses(
            prompt=np.array([e.start.id for e in episodes], object),
            sample=np.array([e.sample for e in episodes]),
            score=np.array([0.0 if e.given_up else e.success for e in episodes]),
            response_tokens=np.array([sum(len(turn.tokens) for turn in e.turns) for e in episodes]),
            truncated=np.array([not e.terminated for e in episodes]),
            format_ok=np.array([bool(e.turns) and all(turn.valid for turn in e.turns) for e in episodes]),
            answer=np.full(len(episodes), None),
            category=np.array([e.category for e in episodes], object),
            losses=np.array([e.losses for e in episodes]),
            unjudged=np.array([e.given_up for e in episodes], bool),
        )


async def play(
    task: EnvironmentTask,
    starts: Sequence[InitialState],
    samples: int,
    generate: Generate,
    encode: Encode,
    decode: Decode,
    scope: tuple[object, ...] = (),
) -> EpisodeBatch:
    """Run `samples` episodes from each start state, all with the start state's seed.

    Args:
        generate: returns responses; called by several tasks at the same time.
        encode, decode: prompt to token ids; responses' token ids to text, without special tokens.
        scope: names on which the sampling seeds depend, beside start state, sample and turn.

    Raises:
        RuntimeError: an environment process cannot start. And whatever `generate` raises.
    """
    config = task.config
    batch = EpisodeBatch([Episode(start, group, i) for group, start in enumerate(starts) for i in range(samples)])
    waiting: dict[EnvironmentProcess, deque[Episode]] = {}
    for episode in batch.episodes:
        waiting.setdefault(task.processes.of(episode.start.seed), deque()).append(episode)
    limit = max(1, config.episodes_at_once // max(1, len(waiting)))
    tasks = [
        asyncio.ensure_future(
            _EnvProcessLoop(batch, config, process, limit, generate, encode, decode, scope).run(episodes)
        )
        for process, episodes in waiting.items()
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for running in tasks:
            running.cancel()
    return batch


@dataclass
class _EnvProcessLoop:
    """Turns of the episodes whose environments are in one process."""

    batch: EpisodeBatch
    config: EnvironmentConfig
    process: EnvironmentProcess
    limit: int
    """Episodes in flight at most."""
    generate: Generate
    encode: Encode
    decode: Decode
    scope: tuple[object, ...]
    encoded: dict[str, np.ndarray] = field(default_factory=dict)

    async def run(self, waiting: deque[Episode]) -> None:
        """Run the waiting episodes until all have ended."""
        active: list[Episode] = []
        try:
            while waiting or active:
                while waiting and len(active) < self.limit:
                    active.append(waiting.popleft())
                    active[-1].number = self.process.number()
                answers = await self.process.run([_call(episode) for episode in active])
                continuing = []
                for episode, answer in zip(active, answers, strict=True):
                    if isinstance(answer, EnvironmentLost):
                        self._restart(episode, answer.reason, waiting)
                    elif self._goes_on(episode, answer):
                        continuing.append(episode)
                active = await self._respond(continuing)
        finally:
            self.process.forget([episode.number for episode in active])

    def _restart(self, episode: Episode, reason: str, waiting: deque[Episode]) -> None:
        """Count a lost environment; its episode waits again, or is given up."""
        episode.losses += 1
        logger.warning(
            "environment lost at turn %d of start state %s: %s; %s",
            len(episode.turns), episode.start.id, reason, "given up" if episode.given_up else "played anew",
        )  # fmt: skip
        episode.turns, episode.success, episode.state = [], 0.0, None
        if not episode.given_up:
            waiting.append(episode)

    def _goes_on(self, episode: Episode, state: StepResult) -> bool:
        """Record an environment's answer; return whether there is another turn."""
        self.batch.cut_observations += state.cut
        self.batch.environment_cpu_seconds += state.cpu_seconds
        episode.state, episode.category, episode.terminated = state, state.category, state.terminated
        if episode.turns:
            turn = episode.turns[-1]
            turn.valid = turn.action is not None and not state.invalid
            turn.reward = state.reward - (0.0 if turn.valid else self.config.invalid_action_penalty)
            episode.success = state.success
        if state.terminated or state.truncated:
            return False
        if len(episode.turns) == self.config.max_turns:
            self.process.forget([episode.number])
            return False
        return True

    async def _respond(self, continuing: list[Episode]) -> list[Episode]:
        """Generate the next response of each episode; return the episodes, without those whose prompt is too long."""
        prompts: list[np.ndarray] = []
        active: list[Episode] = []
        for episode in continuing:
            prompt = next_prompt(self.config, episode)
            key = prompt.text or json.dumps([prompt.messages, prompt.tools])
            if key not in self.encoded:
                self.encoded[key] = self.encode(prompt)
            if len(self.encoded[key]) > self.config.max_prompt_tokens:
                self.process.forget([episode.number])
                continue
            active.append(episode)
            prompts.append(self.encoded[key])
        if not active:
            return []
        # A lost episode is played anew with other seeds: the same actions might lose it again.
        seeds = [stable_seed(*self.scope, e.start.id, e.sample, len(e.turns), e.losses) for e in active]
        done = await self.generate(prompts, seeds)
        self.batch.version = done.version
        self.batch.generate_cpu_seconds += done.cpu_seconds
        responses = done.responses()
        asked = len(done.logprobs) > 0
        logprobs = np.split(done.logprobs, np.cumsum(done.lengths)[:-1]) if asked else [done.logprobs] * len(active)
        for i, (episode, text) in enumerate(zip(active, self.decode(responses), strict=True)):
            action, state = read_action(self.config, text), episode.state
            episode.turns.append(
                Turn(
                    state.anchor,
                    state.observation,
                    prompts[i],
                    responses[i],
                    logprobs[i],
                    bool(done.finished[i]),
                    text,
                    action,
                )
            )
        return active


def next_prompt(config: EnvironmentConfig, episode: Episode) -> Prompt:
    """Make the prompt of an episode's next turn by the section's templates."""
    if config.history == "messages":
        messages = tuple(_conversation(config, episode))
        return Prompt(episode.start.id, messages=messages, tools=tuple(episode.state.tools))
    shown = {"last": 0, "window": config.window, "whole": len(episode.turns)}[config.history]
    past = episode.turns[max(0, len(episode.turns) - shown) :]
    text = config.template.format(
        observation=episode.state.observation,
        history="".join(config.turn_template.format(observation=t.observation, action=t.action or "") for t in past),
        actions=", ".join(episode.state.actions),
        turn=len(episode.turns) + 1,
    )
    if config.chat:
        return Prompt(episode.start.id, messages=({"role": "user", "content": text},))
    return Prompt(episode.start.id, text)


def _conversation(config: EnvironmentConfig, episode: Episode) -> Iterator[dict[str, str]]:
    """Yield an episode's observations and responses as messages; what a tool call gave is the tool's."""
    observations = [turn.observation for turn in episode.turns] + [episode.state.observation]
    asked = False
    for number, observation in enumerate(observations):
        if asked:
            yield {"role": "tool", "content": observation}
        else:
            yield {"role": "user", "content": config.template.format(observation=observation, turn=number + 1)}
        if number < len(episode.turns):
            response = episode.turns[number].response
            yield {"role": "assistant", "content": response}
            asked = bool(episode.state.tools) and calls_tool(response)


def read_action(config: EnvironmentConfig, response: str) -> str | None:
    """Read the action in a response; None where there is none."""
    if config.action == "whole":
        return response.strip() or None
    found = re.findall(r"<action>(.*?)</action>", response, re.DOTALL)
    return (found[-1].strip() or None) if found else None


def _call(episode: Episode) -> Call:
    actions = [turn.action or "" for turn in episode.turns]
    return Call(episode.number, episode.start.seed, actions, episode.turns[-1].anchor if actions else "")


def _shared_fraction(group: np.ndarray, anchor: Sequence[str]) -> float:
    """Compute the share of step groups (equal anchors within a group) that have more than one row."""
    sizes: dict[tuple[int, str], int] = {}
    for key in zip(group.tolist(), anchor, strict=True):
        sizes[key] = sizes.get(key, 0) + 1
    return sum(size > 1 for size in sizes.values()) / len(sizes)
