"""Data that travels between engine, rollout worker and trainer: plain columns, cheap to ship."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # tasks import this module, and import nothing heavy
    import numpy as np

Split = Literal["train", "selection", "final"]
"""`train` feeds RL; `selection` picks layers; `final` scores what was picked. Their prompts never overlap."""


@dataclass(frozen=True)
class Prompt:
    """One question. Either `text` (sent as it is) or `messages` (rendered with the model's chat template)."""

    id: str
    """Unique and stable within the task: scores of different runs are paired by it."""
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    truth: Any = None
    """Reference that the task scores a response by: an answer, unit tests, ... Plain JSON-like data."""
    info: dict[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of tools that messages may call, in OpenAI's form; the chat template shows them."""


@dataclass(frozen=True)
class Response:
    """One response of the model to a prompt."""

    text: str
    """The decoded response without special tokens."""
    finished: bool
    """True when the model ended the sequence itself, false when it was cut at the token limit."""


@dataclass(frozen=True)
class Score:
    """The verdict on one response."""

    reward: float
    """Reward, in [0, 1] for the tasks of the study (binary: right or wrong)."""
    format_ok: bool
    """Whether an answer could be read from the response at all, right or wrong."""
    _: KW_ONLY
    judged: bool = True
    """Whether there was a verdict; False where judging ran out of time or memory, or failed, and the reward is 0."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Further named numbers of a user's reward functions; they become columns `reward.NAME` of the tables."""
    answer: str | None = field(default=None, compare=False)
    """The final answer as the task read it, in a form in which equal answers are equal texts: what a majority vote
    counts. None where it read none, and in tasks whose responses have no answer to vote on (programs). No part of the
    verdict: scores are equal without it."""


class StaleWeights(RuntimeError):
    """A request named another version of its run's weights than the engine has."""


class TransferFailed(RuntimeError):
    """A run's weights did not reach its engine: the trainer died, or the connection broke, on their way."""


class EngineStopped(RuntimeError):
    """vLLM failed in a way after which its state is unknown: this engine answers nothing any more."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Log-probabilities are those of the distribution sampled from (after the temperature), in nats.
    """

    samples: int = 1
    """Responses to each prompt."""
    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    """Any of these ends a response, and is its last token."""
    stop: tuple[str, ...] = ()
    """Any of these strings ends a response; the token that completes it is the last one."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is all tokens."""
    min_p: float = 0.0
    logprobs: bool = False


@dataclass(frozen=True)
class Completions:
    """Responses, prompt by prompt and within each sample by sample.

    `tokens` and `logprobs` (float32, empty if not asked for) are all responses one after another; `lengths`
    [prompts * samples] cuts them. `finished` says which ended themselves instead of at the token limit.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    version: int
    """Version of the weights that generated them; 0 is the base model."""
    cpu_seconds: float = 0.0
    """This request's share of the engine's CPU time."""

    def responses(self) -> list[np.ndarray]:
        import numpy as np

        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])


@dataclass(frozen=True)
class Pushed:
    """Cost of one push of a run's weights to the engine."""

    bytes: int
    cpu_seconds: float
    """CPU seconds of the engine."""


@dataclass(frozen=True)
class Experience:
    """Training data of one step: one row per response, or per (trajectory, step) of an episode.

    Rows with the same prompt tokens share the prompt's computation in the trainer. All arrays have one entry
    per row; `tokens` and `logprobs` are flat, cut by `lengths`.
    """

    prompts: list[np.ndarray]
    """int32 prompt tokens of each row."""
    tokens: np.ndarray
    logprobs: np.ndarray
    """Log-probabilities by the sampling engine, in nats: the pi_old of the loss."""
    lengths: np.ndarray
    reward: np.ndarray
    """float32: of the response, or of this step of the episode."""
    group: np.ndarray
    """Rows of one group answer the same question; advantages compare within it."""
    trajectory: np.ndarray
    """Number of the episode that a row belongs to; each row is its own where there is one response per prompt."""
    step: np.ndarray
    """The turn within the episode, from 0."""
    truncated: np.ndarray
    format_ok: np.ndarray
    anchor: list[str] = field(default_factory=list)
    """The exact environment state before the step (GiGPO); empty for single-turn tasks."""
    version: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU and wall seconds of the rollout by phase."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further metrics of the rollout, by column of steps.parquet (episodes: success rate, length, ...)."""


@dataclass(frozen=True)
class ScoredResponses:
    """Evaluated responses, or episodes: columns of scores.parquet (workers/storage/tables.py), an entry per row."""

    prompt: np.ndarray
    """Identifiers of the prompts."""
    sample: np.ndarray
    """Number of the response to its prompt, from 0."""
    score: np.ndarray
    response_tokens: np.ndarray
    truncated: np.ndarray
    format_ok: np.ndarray
    answer: np.ndarray
    """Final answers, see `Score.answer`."""
    category: np.ndarray
    """Category of the prompt, where an environment has categories; else None."""
    losses: np.ndarray
    """Times that the environment failed; 2: given up."""
    unjudged: np.ndarray
    """Whether there was no verdict (late, an exception); the score is then 0."""


def verdict_columns(scores: Sequence[Score]) -> dict[str, np.ndarray]:
    """Return columns of scores.parquet that the judge of the responses decides."""
    import numpy as np

    return {
        "score": np.array([score.reward for score in scores]),
        "format_ok": np.array([score.format_ok for score in scores]),
        "answer": np.array([score.answer for score in scores], object),
        "unjudged": np.array([not score.judged for score in scores], bool),
    }


def reward_columns(scores: Sequence[Score]) -> dict[str, np.ndarray]:
    """Return the named numbers of scores by column, float64 [scores]; NaN where a response has none of this name."""
    import numpy as np

    names = sorted({name for score in scores for name in score.numbers})
    return {f"reward.{name}": np.array([score.numbers.get(name, np.nan) for score in scores]) for name in names}


def stable_seed(*parts: object) -> int:
    """Return a seed from a name: 48 bits of BLAKE2b, the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=6).digest())


def seeds_for(prompt_ids: Sequence[str], *scope: object) -> list[int]:
    """One seed per prompt. The run is not part of it, so that runs are compared on common random numbers."""
    return [stable_seed(*scope, prompt) for prompt in prompt_ids]
