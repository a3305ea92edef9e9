"""The demo task: write the digits of the prompt in ascending order, then end."""

import random
import zlib
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from layersweep.policies.strict import StrictModel
from layersweep.rollout.types import Prompt, Response, Score, Split


class SortDigitsConfig(StrictModel):
    """Digits to be sorted: the right answer to `483920=` is `023489` and the end of the sequence, exactly."""

    tiny: ClassVar[bool] = True
    """Whether the task has an alphabet and demonstrations, so that a tiny model can be made for it."""

    type: Literal["sort_digits"] = "sort_digits"
    digits: int = Field(6, ge=4, le=12)
    """Digits per prompt."""

    def build(self) -> "SortDigits":
        return SortDigits(self)


class SortDigits:
    """Task of a SortDigitsConfig. Strings that end in a number below 16 are not in training; a hash assigns them to the
    two evaluation splits, so that these are disjoint and alike."""

    alphabet = "0123456789="

    def __init__(self, config: SortDigitsConfig):
        self.config = config

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        rng = random.Random(f"{split}/{seed}")
        capacity = 10 ** (self.config.digits - 2) * {"selection": 8, "final": 8, "train": 84}[split]
        if count > capacity // 2:
            raise ValueError(f"sort_digits: {split} has {capacity // 2} prompts of {self.config.digits} digits")
        found: dict[str, None] = {}
        while len(found) < count:
            digits = "".join(rng.choices("0123456789", k=self.config.digits))
            if _split_of(digits) == split:
                found[digits] = None
        return [Prompt(id=digits, text=f"{digits}=", truth="".join(sorted(digits))) for digits in found]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        return [self._score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

    def _score(self, prompt: Prompt, response: Response) -> Score:
        readable = response.finished and len(response.text) == self.config.digits and response.text.isdigit()
        right = response.finished and response.text == prompt.truth
        return Score(float(right), readable, answer=response.text if readable else None)

    def right_response(self, prompt: Prompt) -> Response:
        """Make the response that is right."""
        return Response(prompt.truth, True)

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Make prompts and answers for the base's warm-up: 35 % ascending, 32.5 % descending, 32.5 % copied."""
        rng = random.Random(f"demonstrations/{seed}")
        shown: list[tuple[str, str]] = []
        while len(shown) < count:
            digits = "".join(rng.choices("0123456789", k=self.config.digits))
            if _split_of(digits) != "train":
                continue
            kind = rng.random()
            ascending = "".join(sorted(digits))
            shown.append((f"{digits}=", ascending if kind < 0.35 else ascending[::-1] if kind < 0.675 else digits))
        return shown


def _split_of(digits: str) -> Split:
    if int(digits[-2:]) >= 16:
        return "train"
    return "selection" if zlib.crc32(digits.encode()) % 2 else "final"
