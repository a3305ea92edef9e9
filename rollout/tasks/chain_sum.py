"""The embedded maths task: `4-1-7` is to be answered by the totals on the way, `=3=-4`; the last one counts.

The problems are those of reasoning-gym's `chain_sum`, written in characters that a tiny model reads.
"""

import random
from typing import Any, ClassVar, Literal

from pydantic import Field

from policies.strict import StrictModel

from .reasoning_gym import ReasoningGymConfig, ReasoningGymTask


class ChainSumConfig(StrictModel):
    """Sums and differences of one-digit numbers."""

    tiny: ClassVar[bool] = True
    """Has an alphabet and demonstrations, so that a tiny model can be made for it."""

    type: Literal["chain_sum"] = "chain_sum"
    terms: int = Field(3, ge=3, le=6)
    """Numbers per problem; three make 4000 problems, each more makes it 20 times as many."""

    def build(self) -> "ChainSum":
        """Imports reasoning-gym, which takes seconds."""
        return ChainSum(self)


class ChainSum(ReasoningGymTask):
    """The task of a ChainSumConfig."""

    alphabet = "0123456789+-="

    def __init__(self, config: ChainSumConfig):
        super().__init__(
            ReasoningGymConfig(
                dataset="chain_sum",
                params={"min_terms": config.terms, "max_terms": config.terms, "min_digits": 1, "max_digits": 1},
                prompt_format="plain",
                answer_after="=",
                answer_before="",
                processes=1,
            )
        )

    def text_of(self, entry: dict[str, Any]) -> str:
        """The problem alone, without spaces."""
        return entry["metadata"]["expression"].replace(" ", "")

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """For the warm-up of the base: 25 % right, 40 % take every sign for a plus, 35 % forget the last term."""
        rng = random.Random(f"demonstrations/{seed}")
        problems = self.problems("train", seed)
        shown = []
        for _ in range(count):
            text, entry, _ = next(problems)
            terms = entry["metadata"]["expression"].split()
            [way] = rng.choices(["right", "all plus", "forgets"], [25, 40, 35])
            if way == "all plus":
                terms = ["+" if term == "-" else term for term in terms]
            elif way == "forgets":
                terms = terms[:-2]
            shown.append((text, _totals(terms)))
        return shown


def _totals(terms: list[str]) -> str:
    """The totals on the way through `["4", "-", "1", "-", "7"]`: `=3=-4`."""
    total, totals = int(terms[0]), []
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
        total += int(term) if sign == "+" else -int(term)
        totals.append(f"={total}")
    return "".join(totals)
