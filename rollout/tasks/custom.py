"""A task of the user's own: a class with `prompts` and `score`, in a file outside the package."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal

from layersweep.policies.user_code import UserCode
from layersweep.rollout.subprocess_pool import Failure, LimitedCalls
from layersweep.rollout.types import Prompt, Response, Score, Split

from .custom_calls import prompt_of
from .user_calls import CallLimits, FailureLog, last_line, trial

TRIED_PROMPTS = 4
"""Prompts of each split that a class is tried on before a sweep starts."""


class CustomTaskConfig(CallLimits, UserCode):
    """A class with the two methods of `rollout.tasks.base.Task`; worker processes make one each, from `settings`.

    Prompts may be dicts of a Prompt's fields (`id`, `text` or `messages`, `truth`, `info`), which are JSON-like.
    `score` is called with lists of one; what it gives for a response is a Score, a number, or a dict with `score` and
    further numbers.
    """

    tiny: ClassVar[bool] = True
    """Whether the task has an alphabet and demonstrations; of a class, only its warm-up can tell."""

    type: Literal["custom"] = "custom"

    @property
    def demonstrated(self) -> str:
        """Hash of what the warm-up of a tiny model follows from."""
        task = self.build()
        with closing(task):
            return hashlib.sha256(json.dumps([task.alphabet, task.demonstrations(256, 0)]).encode()).hexdigest()

    def build(self) -> "CustomTask":
        """Make the task; its processes start with the first call."""
        return CustomTask(self)


class CustomTask:
    """Task of a CustomTaskConfig."""

    def __init__(self, config: CustomTaskConfig):
        self.config = config
        self._calls = self._pool()
        self._failures = FailureLog()

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Return what the class gives.

        Raises:
            ValueError: it fails, or gives another number of prompts, or two of the same name.
        """
        given = self._call({"method": "prompts", "split": split, "count": count, "seed": seed})
        prompts = [prompt_of(fields) for fields in given]
        if len(prompts) != count:
            raise ValueError(f"{self.config.path} gave {len(prompts)} {split} prompts, {count} were asked for")
        names = [prompt.id for prompt in prompts]
        if len(set(names)) < count:
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{self.config.path} gave two {split} prompts with the id {twice!r:.80}")
        return prompts

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Score responses; a call that fails costs its own response alone."""
        requests = [_request(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        results = self._calls.map(requests)
        self._failures.report(f"{self.config.path}.score", results, [response.text for response in responses])
        return [
            Score(0.0, False, judged=False)
            if isinstance(result, Failure)
            else Score(result["score"], result["format_ok"] is not False, numbers=result["numbers"])
            for result in results
        ]

    def check(self) -> None:
        """Try the class on a few prompts of each split, and on an empty response.

        Raises:
            ValueError: it cannot be made, fails, or gives prompts that change from call to call or that two splits
                share.
        """
        with closing(self._pool(1)) as calls:
            ask = [{"method": "prompts", "split": split, "count": TRIED_PROMPTS, "seed": 0} for split in
                   ("train", "train", "selection")]  # fmt: skip
            found = trial(calls, ask)
            if failure := next((result for result in found if isinstance(result, Failure)), None):
                raise ValueError(f"{self.config.path}.prompts fails: {last_line(failure)}")
            if found[0] != found[1]:
                raise ValueError(f"{self.config.path}.prompts gives other prompts when it is asked again; draw them "
                                 "from its arguments alone")  # fmt: skip
            if shared := {p["id"] for p in found[0]} & {p["id"] for p in found[2]}:
                raise ValueError(f"{self.config.path}.prompts gives {min(shared)!r:.80} in train and in selection")
            for result in calls.map([_request(prompt_of(fields), Response("", True)) for fields in found[0]]):
                if isinstance(result, Failure):
                    raise ValueError(f"{self.config.path}.score fails on an empty response: {last_line(result)}")

    @property
    def alphabet(self) -> str:
        """Characters of all prompts and answers."""
        return self._call({"method": "alphabet"})

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Make prompts and answers for a tiny model's warm-up."""
        return [(p, answer) for p, answer in self._call({"method": "demonstrations", "count": count, "seed": seed})]

    def notices(self) -> list[str]:
        """Return what has failed since the last call, each kind once."""
        return self._failures.notices()

    def close(self) -> None:
        """End the worker processes; they also end with this process."""
        self._calls.close()

    def _call(self, request: dict[str, Any]) -> Any:
        [result] = trial(self._calls, [request])
        if isinstance(result, Failure):
            raise ValueError(f"{self.config.path}.{request['method']} fails: {last_line(result)}")
        return result

    def _pool(self, processes: int | None = None) -> LimitedCalls:
        section = {"path": self.config.path, "settings": self.config.settings}
        return self.config.pool("layersweep.rollout.tasks.custom_calls", section, processes)


def _request(prompt: Prompt, response: Response) -> dict[str, Any]:
    return {"method": "score", "prompt": vars(prompt), "text": response.text, "finished": response.finished}
