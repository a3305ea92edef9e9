"""What every single-turn task is: prompts, and a score for each response."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Split = Literal["train", "selection", "final"]
"""`train` feeds RL; `selection` picks layers; `final` scores what was picked. Their prompts never overlap."""


@dataclass(frozen=True)
class Prompt:
    """One question. Either `text` (sent as it is) or `messages` (rendered with the model's chat template)."""

    id: str
    """Unique and stable within the task: scores of different runs are paired by it."""
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    truth: Any = None
    """What the task needs to score a response: an answer, unit tests, ... Plain JSON-like data."""
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """What the model wrote to one prompt."""

    text: str
    """The decoded response without special tokens."""
    finished: bool
    """True when the model ended the sequence itself, false when it was cut at the token limit."""


@dataclass(frozen=True)
class Score:
    """The verdict on one response."""

    reward: float
    """In [0, 1] for the tasks of the study (binary: right or wrong)."""
    format_ok: bool
    """Whether an answer could be read from the response at all, right or wrong."""


class Task(Protocol):
    """A source of prompts and the judge of responses.

    Both methods run in an ordinary worker process, never in the engine's; importing a task's module imports
    neither torch nor vLLM. A task is deterministic: the same arguments give the same prompts.
    """

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """`count` prompts of a split.

        For `train`, `seed` names the batch (it differs by sweep seed and step), so the batches form an endless
        stream; a task over a finite data set draws without replacement within one pass. For `selection` and
        `final`, `seed` is the suite's own and the prompts are the same for every run.

        Raises:
            ValueError: when the split has fewer prompts than asked for; the message says how many there are.
        """

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """The verdict on each response to the prompt at the same position. Bounded in time, never raises on text."""
