"""The protocol of a single-turn task: prompts, and a score for each response."""

from collections.abc import Sequence
from typing import Protocol

from layersweep.rollout.types import Prompt, Response, Score, Split


class Task(Protocol):
    """A source of prompts and the judge of responses.

    Both methods run in an ordinary worker process, never in the engine's; importing a task's module imports
    neither torch nor vLLM. A task is deterministic: the same arguments give the same prompts.
    """

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Draws `count` prompts of a split.

        For `train`, `seed` names the batch (it differs by sweep seed and step), so the batches form an endless
        stream; a task over a finite data set draws without replacement within one pass. For `selection` and
        `final`, `seed` is the suite's own and the prompts are the same for every run.

        Raises:
            ValueError: when the split has fewer prompts than asked for; the message says how many there are.
        """

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Scores each response to the prompt at the same position. Bounded in time; no text makes it raise."""
