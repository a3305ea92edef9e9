"""The protocol of a single-turn task: prompts, and a score for each response."""

from collections.abc import Sequence
from typing import Protocol

from layersweep.rollout.types import Prompt, Response, Score, Split


class Task(Protocol):
    """A source of prompts and the judge of responses, made by `build` of its section of the spec.

    - The section's `build` is called by the plan, to see whether there are prompts enough, and once by the rollout
      worker for the task that is trained and for each suite with a task of its own.
    - `prompts` is called by the rollout worker once per run and step for `train`, and once per evaluation for
      `selection` and `final`.
    - `score` is called by the rollout worker when all responses of a batch are generated, in a thread.

    All run in ordinary worker processes, never in the engine's; importing a task's module imports neither torch nor
    vLLM. A task is deterministic: the same arguments give the same prompts.

    Optional: `data` (prompts read from files; then suites over other data keep their questions out of training);
    `check()`, which the plan calls to try the user's own code; `notices()`, what to tell the user since the last call;
    `right_response(prompt)`, for `layersweep data` (None where a row has no answer to try); `drops_overlong` of a task
    without data (its prompts that are too long for the model's window are left out instead of refused before the
    start); and for a tiny model `tiny` on the section, `alphabet` and `demonstrations(count, seed)`, which its warm-up
    calls. A section with `multi_turn` makes an environment (`rollout.environments.base`) in place of a task.
    """

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Return `count` prompts of a split.

        For `train`, `seed` names the batch (it differs by sweep seed and step), so the batches form an endless
        stream; a task over a finite data set draws without replacement within one pass. For `selection` and
        `final`, `seed` is the suite's own and the prompts are the same for every run.

        Raises:
            ValueError: when the split has fewer prompts than asked for; the message says how many there are.
        """

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Judge each response to the prompt at the same position. Bounded in time; no text makes it raise.

        A `Score` may say what the `answer` is; majority votes are counted where it does.
        """
