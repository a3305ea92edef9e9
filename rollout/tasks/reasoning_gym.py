"""Problems of reasoning-gym's generators: real, varied and endless, without any download."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import count as naturals
from typing import Any, Literal

from pydantic import Field

from layersweep.policies.strict import Processes, StrictModel
from layersweep.rollout.data.prompt_data import split_of
from layersweep.rollout.subprocess_pool import Failure, LimitedCalls
from layersweep.rollout.types import Prompt, Response, Score, Split

logger = logging.getLogger(__name__)

SELECTION_SHARE = FINAL_SHARE = 0.25
"""Share of problems held out for each evaluation split. Generators are endless, so training loses nothing."""
MAX_MISSES = 5_000
"""Consecutive problems of other splits, or duplicates, after which a generator counts as exhausted."""
MAX_ANSWER_CHARS = 10_000


class ReasoningGymConfig(StrictModel):
    """Problems of one of reasoning-gym's generators."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str
    """The name of the generator, such as `chain_sum`."""
    params: dict[str, Any] = {}
    """The generator's own parameters, such as `min_digits`; not its seed and size."""
    template: str = "{question}\nThink step by step, then give the final answer between <answer> and </answer>."
    """The prompt. A name in braces is the problem's `question` or one of its metadata, such as `{expression}`."""
    prompt_format: Literal["chat", "plain"] = "chat"
    """Form of the prompt: `chat` renders a message with the model's chat template, `plain` sends the text alone."""
    system: str | None = None
    """A system message; in plain format a paragraph before the prompt."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """Whether problems that leave no room for a response in the model's window, counted in tokens, stop the sweep
    before it starts, as far as its first batch and its suites have them. In later batches they always give way to
    further problems, and are counted: `overlong_prompts` of steps.parquet."""
    answer_after: str = "<answer>"
    """Mark before the answer; the last one in the response counts. Empty: the answer is at its beginning."""
    answer_before: str = "</answer>"
    """Mark after the answer. Empty: it ends with the response, which must then not be cut at the token limit."""
    partial_credit: bool = False
    """Whether the reward is the generator's own score, from 0 to 1; else only a full score counts."""
    cpu_seconds: float = Field(5.0, gt=0)
    """Bound on scoring one answer, in CPU time. What exceeds it is tried once more with four times as much, is then
    wrong, and counted as `unjudged_fraction`."""
    processes: Processes = 2
    """Worker processes for scoring; they start when there is work for them."""

    def check(self) -> None:
        """Refuse what only reasoning-gym knows to be wrong.

        Raises:
            ValueError: for an unknown generator, parameter or name in the template, with the nearest spelling.
        """
        from .reasoning_gym_entries import check, entry

        check(self.dataset, self.params)
        _render(self.template, entry(self.dataset, json.dumps(self.params), 0, 0))

    def build(self) -> "ReasoningGymTask":
        """Check the section and make the task; import reasoning-gym, which takes seconds."""
        self.check()
        return ReasoningGymTask(self)


class ReasoningGymTask:
    """Task of a ReasoningGymConfig.

    A hash of its text decides which split a problem belongs to, so splits never overlap however few problems a
    generator has.
    """

    def __init__(self, config: ReasoningGymConfig):
        self.config = config
        self._params = json.dumps(config.params)
        self._name = f"{config.dataset} with {config.params}"
        self._scores = LimitedCalls(
            "layersweep.rollout.tasks.reasoning_gym_entries:score", config.cpu_seconds, config.processes
        )

    @property
    def drops_overlong(self) -> bool:
        """Whether problems that are too long for the model are left out instead of refused."""
        return self.config.overlong_prompts == "drop"

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Draw `count` different problems; another seed gives others, as far as the generator has enough of them."""
        found: dict[str, Prompt] = {}
        for tried, (text, entry, seed_and_index) in enumerate(self.problems(split, seed)):
            if len(found) == count:
                break
            if tried > MAX_MISSES + 50 * count:
                raise ValueError(
                    f"reasoning_gym: {self._name} has about {len(found)} different {split} problems, not {count}"
                )
            if text not in found:
                found[text] = self._prompt(text, entry, seed_and_index)
        return list(found.values())

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Score responses; `format_ok` says that an answer was marked as `answer_after` requires."""
        answers = [self._answer(response) for response in responses]
        calls = [
            (self.config.dataset, self._params, *prompt.truth, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
            if answer is not None
        ]
        different = list(dict.fromkeys(calls))
        results = dict(zip(different, self._scores.map(different), strict=True))
        failures = [result.reason for result in results.values() if isinstance(result, Failure)]
        if failures:
            logger.warning("%s could not score %d answers: %s", self.config.dataset, len(failures), failures[0])
        scored = (results[call] for call in calls)
        return [Score(0.0, False) if answer is None else self._score(next(scored), answer) for answer in answers]

    def right_response(self, prompt: Prompt) -> Response:
        """Make a response of the generator's own answer, between the marks."""
        return Response(f"{self.config.answer_after}{prompt.info['answer']}{self.config.answer_before}", True)

    def close(self) -> None:
        """End the worker processes; they also end with this process."""
        self._scores.close()

    def text_of(self, entry: dict[str, Any]) -> str:
        """Render the prompt of an entry of the generator."""
        return _render(self.config.template, entry)

    def problems(self, split: Split, seed: int) -> Iterator[tuple[str, dict[str, Any], tuple[int, int]]]:
        """Yield a split's problems without end: prompt text, entry, and the entry's seed and index."""
        from .reasoning_gym_entries import CHUNK, entry

        misses = 0
        for chunk in naturals():
            digest = hashlib.blake2b(f"{split}/{seed}/{chunk}".encode(), digest_size=8).digest()
            # Some generators take no seed above 2^31.
            start = int.from_bytes(digest) % (2**31 // CHUNK) * CHUNK
            for index in range(CHUNK):
                problem = entry(self.config.dataset, self._params, start, index)
                text = self.text_of(problem)
                if split_of(text, SELECTION_SHARE, FINAL_SHARE) == split:
                    misses = 0
                    yield text, problem, (start, index)
                elif (misses := misses + 1) > MAX_MISSES:
                    raise ValueError(f"reasoning_gym: {self._name} has no {split} problems")

    def _prompt(self, text: str, entry: dict[str, Any], seed_and_index: tuple[int, int]) -> Prompt:
        identity = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        system = self.config.system
        info = {"answer": entry["answer"]}
        if self.config.prompt_format == "plain":
            text = text if system is None else f"{system}\n\n{text}"
            return Prompt(identity, text=text, truth=seed_and_index, info=info)
        messages = [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return Prompt(identity, messages=tuple(messages), truth=seed_and_index, info=info)

    def _answer(self, response: Response) -> str | None:
        answer = response.text
        if self.config.answer_after:
            _, mark, answer = answer.rpartition(self.config.answer_after)
            if not mark:
                return None
        if self.config.answer_before:
            answer, mark, _ = answer.partition(self.config.answer_before)
            if not mark:
                return None
        elif not response.finished:
            return None
        answer = answer.strip()
        return answer if answer and len(answer) <= MAX_ANSWER_CHARS else None

    def _score(self, result: Any, answer: str) -> Score:
        if isinstance(result, Failure):
            return Score(0.0, format_ok=True, judged=False, answer=answer)
        reward = min(max(result, 0.0), 1.0) if self.config.partial_credit else float(result >= 1)
        return Score(reward, format_ok=True, answer=answer)


def _render(template: str, entry: dict[str, Any]) -> str:
    values = entry["metadata"] | {"question": entry["question"]}

    def value(match: re.Match) -> str:
        if match[1] not in values:
            raise ValueError(f"template: the problems have no {match[0]}; there are: {', '.join(sorted(values))}")
        return str(values[match[1]])

    return re.sub(r"\{(\w+)\}", value, template)
