"""Mathematics: questions with a final answer, checked by string and, where that does not tell, by math-verify."""

import json
import logging
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from layersweep.policies.strict import Processes, StrictModel
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import ground_truth
from layersweep.rollout.subprocess_pool import Failure, LimitedCalls
from layersweep.rollout.types import Prompt, Response, Score, Split

from .math_answer import MAX_ANSWER_CHARS, all_boxed, final_answer, marked_answer, statements
from .math_equality import plainly_equal
from .math_notation import canonical, split_list
from .math_truth import is_prose, readable

logger = logging.getLogger(__name__)


class MathConfig(StrictModel):
    """Mathematical questions from a data set."""

    type: Literal["math"] = "math"
    data: DataConfig
    r"""The questions. An answer may be the bare answer, a solution with `\boxed{}` or GSM8K's `####`, a number, or
    a list of answers each of which is right."""
    cpu_seconds: float = Field(1.0, gt=0)
    """Bound on one comparison by math-verify, in CPU time. What exceeds it is tried once more with four times as much,
    is then wrong, and counted as `unjudged_fraction`."""
    processes: Processes = 4
    """Worker processes for comparisons; they start when there is work for them."""

    @property
    def fetched(self) -> str | None:
        """Name of what is fetched when the run starts, so that a plan cannot check it; None where all is here."""
        return self.data.fetched

    def build(self) -> "MathTask":
        """Read the data.

        Raises:
            DataError: it cannot be read, or a row has no answer.
        """
        return MathTask(self)


class MathTask:
    """Task of a MathConfig. The reward is 1 for a right final answer, else 0."""

    def __init__(self, config: MathConfig):
        self.data = PromptData(config.data, lambda raw: truths_of(ground_truth(raw, config.data.columns)))
        self._equal = comparisons(config.cpu_seconds, config.processes)

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Draw prompts, see `layersweep.rollout.data.prompt_data.PromptData.prompts`."""
        return self.data.prompts(split, count, seed)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Score responses; `format_ok` says that there was a final answer, right or wrong."""
        pairs = [self._pairs(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        # Samples of one prompt often agree, so each pair is looked at once.
        verdicts: dict[tuple[str, str], Any] = {pair: plainly_equal(*pair) for each in pairs for pair in each or ()}
        hard = [pair for pair, verdict in verdicts.items() if verdict is None]
        results = dict(zip(hard, self._equal.map(hard), strict=True))
        failed = {pair: result.reason for pair, result in results.items() if isinstance(result, Failure)}
        for pair, reason in list(failed.items())[:1]:
            logger.warning("math-verify gave no verdict on %d answers, so on %.80r: %s", len(failed), pair[1], reason)
        verdicts |= results
        scores = []
        for prompt, response, each in zip(prompts, responses, pairs, strict=True):
            right = any(verdicts[pair] is True for pair in each or ()) or _stated(prompt, response)
            judged = right or not failed.keys() & set(each or ())
            answer = canonical(each[0][1]) if each else None
            scores.append(Score(float(right), right or each is not None, judged=judged, answer=answer))
        return scores

    def _pairs(self, prompt: Prompt, response: Response) -> list[tuple[str, str]] | None:
        """Pair each right answer with what the response has for it; None where the response has no answer."""
        if (answer := final_answer(response.text, response.finished)) is None:
            return None
        parts = {right: len(split_list(canonical(right))) for right in prompt.truth}
        return [
            (
                right,
                (final_answer(response.text, response.finished, parts[right]) if parts[right] > 1 else None) or answer,
            )
            for right in prompt.truth
        ]

    def right_response(self, prompt: Prompt) -> Response:
        """Make a response with the row's answer in a box."""
        return Response(f"\\boxed{{{prompt.truth[0]}}}", True)

    def close(self) -> None:
        """End the worker processes; they also end with this process."""
        self._equal.close()


def _stated(prompt: Prompt, response: Response) -> bool:
    whole = statements(response.text, response.finished)
    return any(plainly_equal(right, statement) is True for right in prompt.truth for statement in whole)


def comparisons(cpu_seconds: float, processes: int) -> LimitedCalls:
    """Make a pool that compares pairs of answers by math-verify."""
    judge = "layersweep.rollout.tasks.math_judge"
    return LimitedCalls(f"{judge}:equal", cpu_seconds, processes, f"{judge}:warm_up")


def truths_of(value: Any) -> list[str]:
    """List the right answers that a ground truth stands for.

    Raises:
        ValueError: when it holds no answer.
    """
    if isinstance(value, str) and value.lstrip().startswith(('["', '{"')):
        value = json.loads(value)  # a list of answers within a string, as in Skywork-OR1
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("the list of answers is empty")
    return [_truth_of(v) for v in values]


def _truth_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"the answer is neither text nor a number but {type(value).__name__}")
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise ValueError("the answer is not a finite number")
    text = readable(f"{value:.0f}" if isinstance(value, float | Decimal) and value % 1 == 0 else str(value))
    if not text:
        raise ValueError("the answer is empty")
    marked = "\\boxed" in text or "\\fbox" in text or "####" in text
    answer = (all_boxed(text) or marked_answer(text) if marked else text) or ""
    if not answer or len(answer) > MAX_ANSWER_CHARS or (not marked and is_prose(text)):
        raise ValueError(f"no final answer in a solution of {len(text)} characters; see data.columns.answer")
    return answer
