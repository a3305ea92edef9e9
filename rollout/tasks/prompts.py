"""Prompts from a data set, scored by reward functions of the user's own."""

import json
import random
from collections.abc import Sequence
from contextlib import closing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from layersweep.policies.strict import written_as
from layersweep.policies.user_code import UserCode
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import ground_truth, json_like
from layersweep.rollout.subprocess_pool import Failure, LimitedCalls
from layersweep.rollout.types import Prompt, Response, Score, Split

from .user_calls import CallLimits, FailureLog, last_line, trial

TRIED_ROWS = 4
"""Rows that rewards are tried on before a sweep starts."""
RIGHT_SHARE = 0.35
"""Share of a tiny model's demonstrations that are right; the others show another row's answer."""


class RewardConfig(UserCode):
    """One reward function, of verl's signature (`data_source, solution_str, ground_truth, extra_info`) or of TRL's
    (`prompts, completions, **columns`; called with lists of one). It gives a number, or a dict with `score` and further
    numbers. A plain string is short for `{path: ...}`."""

    settings: dict[str, Any] = {}
    """Further keyword arguments of every call."""
    weight: float = 1.0
    """Factor of its score in the reward."""
    name: Annotated[str, written_as(r"[A-Za-z0-9_.-]{1,64}", "1 to 64 letters, digits, `_`, `.`, `-`")] | None = None
    """Name in the tables, where there are several; null is the function's own."""

    @property
    def column(self) -> str:
        """Name in the tables."""
        return self.name or self.object_name


class PromptsConfig(CallLimits):
    """Prompts from a data set, and a reward of your own, which worker processes compute."""

    tiny: ClassVar[bool] = True
    """Whether the task has an alphabet and demonstrations, so that a tiny model can be made for it."""

    type: Literal["prompts"] = "prompts"
    data: DataConfig
    """The prompts. An answer is not required: a reward may do without."""
    reward: tuple[RewardConfig, ...] = Field(min_length=1, json_schema_extra={"title": "Reward"})
    """The reward: one function, as `my_rewards.py:score` or with settings, or a list of several. The reward of a
    response is then the weighted sum of their scores, and each one's score is a column `reward.NAME` of the tables,
    as are the further numbers that they give."""

    @field_validator("reward", mode="before", json_schema_input_type=str | RewardConfig | list[str | RewardConfig])
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in values]

    @field_validator("reward")
    @classmethod
    def _names_differ(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        names = [reward.column for reward in rewards]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rewards are named {twice[0]}; give one a `name` of its own")
        return rewards

    @property
    def fetched(self) -> str | None:
        """Name of what is fetched when the run starts, so that a plan cannot check it; None where all is here."""
        return self.data.fetched

    @property
    def demonstrated(self) -> str:
        """Hash of the data, from which the warm-up of a tiny model follows; rewards do not change it."""
        return self.build().data.fingerprint()

    def build(self) -> "PromptsTask":
        """Read the data.

        Raises:
            DataError: it cannot be read.
        """
        return PromptsTask(self)


class PromptsTask:
    """Task of a PromptsConfig."""

    def __init__(self, config: PromptsConfig):
        self.config = config
        self.data = PromptData(config.data, self._truth, None)
        self._calls = self._pool()
        self._failures = FailureLog()

    def _truth(self, raw: dict[str, Any]) -> Any:
        return json_like(ground_truth(raw, self.config.data.columns, required=False))

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Draw prompts, see `layersweep.rollout.data.prompt_data.PromptData.prompts`."""
        return self.data.prompts(split, count, seed)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Score responses. Equal responses to a prompt are scored once. `format_ok` is what a function's dict says
        under this name, else whether there was a verdict."""
        rewards = range(len(self.config.reward))
        pairs = [(prompt.id, response.text) for prompt, response in zip(prompts, responses, strict=True)]
        requests = {
            (number, *pair): self._request(number, prompt, pair[1])
            for number in rewards
            for prompt, pair in zip(prompts, pairs, strict=True)
        }
        results = dict(zip(requests, self._calls.map(list(requests.values())), strict=True))
        for number in rewards:
            failed_or_not = [results[number, *pair] for pair in pairs]
            self._failures.report(
                f"reward {self.config.reward[number].path}", failed_or_not, [text for _, text in pairs]
            )
        return [self._score([results[number, *pair] for number in rewards]) for pair in pairs]

    def check(self) -> None:
        """Try every reward on the right answers of a few rows.

        Raises:
            ValueError: one cannot be imported, or fails; the message ends with the last line of its traceback.
        """
        prompts = self.data.all_prompts("train")[:TRIED_ROWS] or self.data.all_prompts("selection")[:TRIED_ROWS]
        with closing(self._pool(1)) as calls:
            for number, reward in enumerate(self.config.reward):
                for prompt in prompts:  # one after the other: after one that is late the others would be
                    try:
                        [result] = trial(calls, [self._request(number, prompt, self.right_response(prompt).text)])
                    except ValueError as error:
                        raise ValueError(f"reward: {error}") from error
                    if isinstance(result, Failure):
                        row = self.data.row_of(prompt)
                        raise ValueError(f"reward: {reward.path} fails on {row}: {last_line(result)}")

    def right_response(self, prompt: Prompt) -> Response:
        """Make the response that a row calls right: its answer as it stands."""
        answer = prompt.truth[0] if isinstance(prompt.truth, list) and prompt.truth else prompt.truth
        return Response(answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer), True)

    @property
    def alphabet(self) -> str:
        """Characters of all prompts and answers."""
        splits: tuple[Split, ...] = ("train", "selection", "final")
        shown = (prompt for split in splits for prompt in self.data.all_prompts(split))
        return "".join(sorted({c for p in shown for c in (p.text or "") + self.right_response(p).text}))

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Make prompts and answers of the train split for the base's warm-up: 35 % right, else another row's answer."""
        rng = random.Random(f"demonstrations/{seed}")
        rows = [(prompt.text or "", self.right_response(prompt).text) for prompt in self.data.all_prompts("train")]
        shown = []
        for _ in range(count):
            prompt, answer = rng.choice(rows)
            shown.append((prompt, answer if rng.random() < RIGHT_SHARE else rng.choice(rows)[1]))
        return shown

    def notices(self) -> list[str]:
        """Return what has failed since the last call, each kind once."""
        return self._failures.notices()

    def close(self) -> None:
        """End the worker processes; they also end with this process."""
        self._calls.close()

    def _pool(self, processes: int | None = None) -> LimitedCalls:
        paths = [reward.path for reward in self.config.reward]
        return self.config.pool("layersweep.rollout.tasks.reward_calls", paths, processes)

    def _request(self, number: int, prompt: Prompt, text: str) -> dict[str, Any]:
        return {
            "function": number,
            "settings": self.config.reward[number].settings,
            "response": text,
            "ground_truth": prompt.truth,
            "prompt": prompt.text if prompt.messages is None else list(prompt.messages),
            "columns": prompt.info["columns"],
        }

    def _score(self, results: Sequence[Any]) -> Score:
        """Sum the weighted scores of one response; a reward that does not apply adds nothing."""
        if any(isinstance(result, Failure) for result in results):
            return Score(0.0, format_ok=False, judged=False)
        several, total, numbers, format_ok = len(results) > 1, 0.0, {}, True
        for reward, result in zip(self.config.reward, results, strict=True):
            total += reward.weight * (result["score"] or 0.0)
            format_ok &= result["format_ok"] is not False
            if several and result["score"] is not None:
                numbers[reward.column] = result["score"]
            numbers |= {f"{reward.column}.{k}" if several else k: value for k, value in result["numbers"].items()}
        return Score(total, format_ok, numbers=numbers)
