"""Comparison of what a program returned or printed with what a test wants."""

import json
import math
import re
from decimal import Decimal
from typing import Any

TOLERANCE = 1e-6
"""Relative or absolute error at which a wanted float is met: the usual one of programming contests."""

_NUMBER = re.compile(r"[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})(e[-+]?\d{1,3})?", re.ASCII | re.IGNORECASE)


def same_text(got: str, wanted: str) -> bool:
    """Return whether two outputs agree, line by line and word by word.

    Blanks at the ends of lines and of the text do not count. Words that are numbers agree by value: `1.0` and `1e0`
    equal `1`. A wanted float is met within TOLERANCE, a wanted integer by a float within TOLERANCE of it.
    """
    one, other = ([line.split() for line in text.strip().splitlines()] for text in (got, wanted))
    return len(one) == len(other) and all(
        len(a) == len(b) and all(x == y or _same_number(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _same_number(got: str, wanted: str) -> bool:
    if not _NUMBER.fullmatch(got) or not _NUMBER.fullmatch(wanted):
        return False
    if _is_integer(got) and _is_integer(wanted):
        return int(got) == int(wanted)
    value, target = Decimal(got), Decimal(wanted)
    # An integer is exact, however large: a float that stands for it may be off by rounding alone.
    scale = 1 if _is_integer(wanted) else max(1, abs(value), abs(target))
    return abs(value - target) <= Decimal(TOLERANCE) * scale


def _is_integer(word: str) -> bool:
    return word.lstrip("+-").isdigit()


def same_value(got: Any, wanted: Any) -> bool:
    """Return whether a value agrees with the one wanted.

    Tuples equal lists, dict keys are text as in JSON; a wanted float is met within TOLERANCE, a wanted integer by a
    float within TOLERANCE of it.

    Args:
        got: what `value_codec.encode` made of the value. It is not decoded: sets and dicts built from a hostile
            program's choice of keys can take for ever to build.
        wanted: JSON data.
    """
    if isinstance(got, dict) and len(got) == 1 and isinstance(wanted, (list, tuple)):
        got = got.get("tuple")
    if isinstance(wanted, (list, tuple)):
        return isinstance(got, list) and len(got) == len(wanted) and all(map(same_value, got, wanted))
    if isinstance(wanted, dict):
        pairs = got.get("dict") if isinstance(got, dict) else None
        if not isinstance(pairs, list) or len(pairs) != len(wanted):
            return False
        found = {key if isinstance(key, str) else json.dumps(key): value for key, value in pairs}
        return found.keys() == wanted.keys() and all(same_value(found[key], wanted[key]) for key in found)
    if isinstance(wanted, float) and isinstance(got, (int, float)) and not isinstance(got, bool):
        return got == wanted or math.isclose(got, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(wanted, int) and isinstance(got, float):
        return abs(got - wanted) <= TOLERANCE
    return not isinstance(got, (list, dict)) and bool(got == wanted)
