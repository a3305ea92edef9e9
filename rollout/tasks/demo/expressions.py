"""The demo's code task: the right answer to `a3m2s1:` (add 3, times 2, subtract 1) is the expression `(x+3)*2-1`.

Small enough for a model that reads characters, yet judged as code is: every expression runs in the sandbox.
"""

import hashlib
import itertools
import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from layersweep.policies.strict import StrictModel
from layersweep.rollout.sandbox import CallTests, Limits, Sandbox, Setting, Verdict
from layersweep.rollout.types import Prompt, Response, Score, Split

_VALUES = (0, 1, 2, 7, 100)
"""The unit tests: an expression must have the right value for each of these x."""
_LANGUAGE = frozenset("x0123456789+-*()")
_SHARES: dict[Split, range] = {"selection": range(15), "final": range(15, 25), "train": range(25, 100)}
_MAX_KNOWN = 1 << 17
_OPERATIONS = 3


class ExpressionsConfig(StrictModel):
    """Prompts are chains of operations whose expression needs parentheses; unit tests judge the answer."""

    tiny: ClassVar[bool] = True
    """Whether the task has an alphabet and demonstrations, so that a tiny model can be made for it."""

    type: Literal["expressions"] = "expressions"
    sandbox: Setting = "auto"
    """Sandbox in which expressions run; `bubblewrap` refuses to fall back to a subprocess."""

    def build(self) -> "Expressions":
        """Make the task.

        Raises:
            SandboxError: expressions cannot be run here; the message says why.
        """
        return Expressions(self)


class Expressions:
    """Task of an ExpressionsConfig. A hash of the prompt decides its split, so the splits are disjoint."""

    alphabet = "ams:" + "".join(sorted(_LANGUAGE))

    def __init__(self, config: ExpressionsConfig):
        limits = Limits(cpu_seconds=1, memory_bytes=256 << 20)
        self._sandbox = Sandbox(config.sandbox, limits)
        self._known: dict[tuple[str, str], Verdict] = {}
        self._prompts: dict[Split, list[str]] = {split: [] for split in _SHARES}
        for chain in _chains():
            self._prompts[_split_of(chain)].append(chain)

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """Draw `count` prompts of a split, all different."""
        pool = self._prompts[split]
        if count > len(pool):
            raise ValueError(f"expressions: {split} has {len(pool)} prompts, {count} were asked for")
        chains = random.Random(f"{split}/{seed}").sample(pool, count)
        return [Prompt(id=c, text=f"{c}:", truth=[_value(c, x) for x in _VALUES]) for c in chains]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """Score 1 when the expression has the right value for every x; `format_ok` when it is an expression at all.

        What ran before does not run again: the same expression gets the same verdict.
        """
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        pairs = [(prompt.id, response.text) for prompt, response in zip(prompts, responses, strict=True)]
        truths = {prompt.id: prompt.truth for prompt in prompts}
        new = {
            pair: CallTests(f"def f(x): return {pair[1]}", "f", tuple((x,) for x in _VALUES), tuple(truths[pair[0]]))
            for pair, response in zip(pairs, responses, strict=True)
            if response.finished and response.text and _LANGUAGE.issuperset(response.text) and pair not in self._known
        }
        self._known |= zip(new, self._sandbox.judge(list(new.values())), strict=True)
        return [
            Score(float(self._known[pair].passed), self._known[pair].compiles)
            if response.finished and pair in self._known
            else Score(0.0, False)
            for pair, response in zip(pairs, responses, strict=True)
        ]

    def demonstrations(self, count: int, seed: int) -> list[tuple[str, str]]:
        """Make prompts and answers for the base's warm-up; 60 % of the answers lack their parentheses."""
        rng = random.Random(f"demonstrations/{seed}")
        shown = []
        for chain in rng.choices(self._prompts["train"], k=count):
            right = _expression(chain)
            shown.append((f"{chain}:", right.translate({40: None, 41: None}) if rng.random() < 0.6 else right))
        return shown


def _chains() -> list[str]:
    """List every chain in which a sum or difference is multiplied later, so that its expression needs parentheses."""
    steps = [f"{letter}{digit}" for letter in "ams" for digit in range(2 if letter == "m" else 1, 10)]
    chains = map("".join, itertools.product(steps, repeat=_OPERATIONS))
    return [chain for chain in chains if "(" in _expression(chain)]


def _expression(chain: str) -> str:
    """Write the expression of a chain with no more parentheses than it needs."""
    text, is_sum = "x", False
    for letter, digit in zip(chain[::2], chain[1::2], strict=True):
        if letter == "m" and is_sum:
            text, is_sum = f"({text})", False
        is_sum = is_sum or letter != "m"
        text += {"a": "+", "m": "*", "s": "-"}[letter] + digit
    return text


def _value(chain: str, x: int) -> int:
    for letter, digit in zip(chain[::2], map(int, chain[1::2]), strict=True):
        x = x + digit if letter == "a" else x - digit if letter == "s" else x * digit
    return x


def _split_of(chain: str) -> Split:
    position = int.from_bytes(hashlib.blake2b(chain.encode(), digest_size=8).digest()) % 100
    return next(split for split, share in _SHARES.items() if position in share)
