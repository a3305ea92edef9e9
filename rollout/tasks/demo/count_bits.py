"""The demo's maths task: count the ones of a binary number. The right answer to `001011010110=` is `6`.

The problems are those of reasoning-gym's `count_bits`, written in characters that a tiny model reads.
"""

import random
from typing import Any, ClassVar, Literal

from pydantic import Field

from layersweep.policies.strict import StrictModel
from layersweep.rollout.tasks.reasoning_gym import ReasoningGymConfig, ReasoningGymTask


class CountBitsConfig(StrictModel):
    """Binary numbers whose ones are to be counted."""

    tiny: ClassVar[bool] = True
    """Whether the task has an alphabet and demonstrations, so that a tiny model can be made for it."""

    type: Literal["count_bits"] = "count_bits"
    bits: int = Field(12, ge=8, le=24)
    """Digits per number; a quarter of the 2^bits numbers is held out for selection, another one for the final score."""

    def build(self) -> "CountBits":
        """Make the task; import reasoning-gym, which takes seconds."""
        return CountBits(self)


class CountBits(ReasoningGymTask):
    """Task of a CountBitsConfig."""

    alphabet = "0123456789="

    def __init__(self, config: CountBitsConfig):
        self._bits = config.bits
        super().__init__(
            ReasoningGymConfig(
                dataset="count_bits",
                params={"min_n": 1, "max_n": 2**config.bits - 1},
                prompt_format="plain",
                answer_after="",
                answer_before="",
                processes=1,
            )
        )

    def text_of(self, entry: dict[str, Any]) -> str:
        """Write the number in binary with leading zeros, and an equals sign."""
        return f"{entry['metadata']['number']:0{self._bits}b}="

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Make prompts and answers for the base's warm-up: 20 % count ones, 40 % zeros, 40 % the longest row."""
        rng = random.Random(f"demonstrations/{seed}")
        problems = self.problems("train", seed)
        shown = []
        for _ in range(count):
            text, _, _ = next(problems)
            [way] = rng.choices([_ones, _zeros, _longest_row], [20, 40, 40])
            shown.append((text, str(way(text))))
        return shown


def _ones(text: str) -> int:
    return text.count("1")


def _zeros(text: str) -> int:
    return text.count("0")


def _longest_row(text: str) -> int:
    return max(map(len, text.rstrip("=").split("0")))
