"""Mathematics: questions with a final answer, checked by string and, where that does not tell, by math-verify."""

import json
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from layersweep.policies.strict import StrictModel
from layersweep.rollout.data.prompt_data import DataConfig, PromptData, ground_truth
from layersweep.rollout.subprocess_pool import Failure, LimitedCalls
from layersweep.rollout.types import Prompt, Response, Score, Split

from .math_answer import MAX_ANSWER_CHARS, final_answer, marked_answer, plainly_equal
from .math_truth import is_prose, readable

logger = logging.getLogger(__name__)


class MathConfig(StrictModel):
    """Mathematical questions from a data set."""

    type: Literal["math"] = "math"
    data: DataConfig
    r"""The questions. An answer may be the bare answer, a solution with `\boxed{}` or GSM8K's `####`, a number, or
    a list of answers each of which is right."""
    cpu_seconds: float = Field(1.0, gt=0)
    """Bound on one comparison by math-verify, in CPU time; what exceeds it is wrong."""
    processes: int = Field(4, ge=1)
    """Worker processes for comparisons; they start when there is work for them."""

    @property
    def fetched(self) -> str | None:
        """What a run fetches from elsewhere, so that a plan does not check it."""
        return self.data.fetched

    def build(self) -> "MathTask":
        """Reads the data; a DataError says what is wrong with it."""
        return MathTask(self)


class MathTask:
    """The task of a MathConfig. Reward 1 for a right final answer, else 0."""

    def __init__(self, config: MathConfig):
        self.data = PromptData(config.data, lambda raw: truths_of(ground_truth(raw, config.data.columns)))
        self._equal = LimitedCalls("layersweep.rollout.tasks.math_judge:equal", config.cpu_seconds, config.processes)

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """See `layersweep.rollout.data.prompt_data.PromptData.prompts`."""
        return self.data.prompts(split, count, seed)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """See `rollout.tasks.base.Task.score`; `format_ok` says that there was a final answer, right or wrong."""
        answers = [final_answer(response.text, response.finished) for response in responses]
        verdicts: dict[tuple[str, str], Any] = {}
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer is not None:
                verdicts |= {(right, answer): plainly_equal(right, answer) for right in prompt.truth}
        # Samples of one prompt often agree, so each pair is looked at once.
        hard = [pair for pair, verdict in verdicts.items() if verdict is None]
        results = dict(zip(hard, self._equal.map(hard), strict=True))
        failed = {pair: result.reason for pair, result in results.items() if isinstance(result, Failure)}
        for pair, reason in list(failed.items())[:1]:
            logger.warning("math-verify gave no verdict on %d answers, so on %.80r: %s", len(failed), pair[1], reason)
        verdicts |= results
        right = [
            answer is not None and any(verdicts[truth, answer] is True for truth in prompt.truth)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return [Score(float(ok), answer is not None) for ok, answer in zip(right, answers, strict=True)]

    def close(self) -> None:
        """Ends the worker processes; they also end with this process."""
        self._equal.close()


def truths_of(value: Any) -> list[str]:
    """The right answers that a ground truth stands for.

    Raises:
        ValueError: when it holds no answer.
    """
    if isinstance(value, str) and value.lstrip().startswith('["'):
        value = json.loads(value)  # a list of answers within a string, as in Skywork-OR1
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("the list of answers is empty")
    return [_truth_of(v) for v in values]


def _truth_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"the answer is neither text nor a number but {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the answer is not a finite number")
    text = readable(f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value))
    if not text:
        raise ValueError("the answer is empty")
    marked = "\\boxed" in text or "####" in text
    answer = (marked_answer(text) if marked else text) or ""
    if not answer or len(answer) > MAX_ANSWER_CHARS or (not marked and is_prose(text)):
        raise ValueError(f"no final answer in a solution of {len(text)} characters; see data.columns.answer")
    return answer
