"""Equality of two mathematical answers by math-verify, in a worker process of `rollout.subprocess_pool`."""

import logging
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Expr, FiniteSet, Float, I, Interval, Rational, Tuple, default_sort_key, prime

from .math_equality import sides

# Its own time-outs need the main thread and warn when they are off; the worker process is bounded instead.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

SIGNIFICANT = 5e-4
"""Share of the right value by which a decimal may differ. math-verify rounds to six places behind the point, so
that all that is smaller would be equal. Exact values must be equal exactly."""


def equal(pair: list[str]) -> bool:
    """Tell whether the second answer equals the first, the right one; both as LaTeX or plain text without a box."""
    answers = sides(*pair)
    right, given = (parse(f"\\boxed{{{text}}}", _TARGETS, parsing_timeout=None) for text in answers)
    if any(isinstance(part, Expr) and part.is_real is False for part in (*right, *given)):
        right, given = _with_imaginary_unit(right), _with_imaginary_unit(given)
    # An inequality says the same as the interval of its solutions, whichever of the two is the right answer.
    return verify(right, given, timeout_seconds=None, allow_set_relation_comp=True) and _near(
        right[0], given[0], "%" in "".join(answers)
    )


def _with_imaginary_unit(answer: list[Any]) -> list[Any]:
    """Read the letter i as the imaginary unit, as it is where the other answer has a root of a negative number."""
    return [part.subs({s: I for s in part.free_symbols if s.name == "i"}) if isinstance(part, Expr) else part
            for part in answer]  # fmt: skip


def warm_up() -> None:
    """Make the comparisons that import, compile and cache what all later ones need."""
    for pair in (
        ["\\frac{1}{2}", "0.5"],
        ["(x+1)^2", "x^2+2x+1"],
        ["\\{1,2\\}", "2, 1"],
        ["x \\le 2", "(-\\infty, 2]"],
    ):
        equal(pair)


def _near(right: Any, given: Any, percent: bool) -> bool:
    """Tell whether what math-verify takes for equal is so in relation to its size; true where there is no size."""
    pairs = list(zip(*map(_numbers, (right, given)), strict=False))
    if len(pairs) != len(_numbers(right)) or any(one.free_symbols != other.free_symbols for one, other in pairs):
        return True
    return all(_close(one, other, percent) for one, other in pairs)


def _numbers(expression: Any) -> list[Expr]:
    """List what is to be compared: elements in order of their size, ends of an interval, or the whole."""
    if isinstance(expression, Interval):
        parts = [expression.start, expression.end]
    elif isinstance(expression, FiniteSet | Tuple):
        parts = list(expression.args)
    else:
        parts = [expression]
    if not all(isinstance(part, Expr) for part in parts):
        return []
    return (
        sorted(parts, key=lambda part: default_sort_key(part.evalf())) if isinstance(expression, FiniteSet) else parts
    )


def _close(right: Expr, given: Expr, percent: bool) -> bool:
    symbols = sorted(right.free_symbols, key=str)
    values = {symbol: Rational(prime(i + 3), prime(i + 7)) for i, symbol in enumerate(symbols)}
    right, given = (expression.subs(values).doit() for expression in (right, given))
    return any(_same_size(right, other) for other in ([given, 100 * given, given / 100] if percent else [given]))


def _same_size(right: Expr, given: Expr) -> bool:
    difference = (right - given).evalf(15)
    parts = [part for part in difference.as_real_imag() if part.is_Float and part._prec > 1]  # no digit is certain at 1
    if not all(parts) or not parts or not difference.is_number:
        return True
    if not (right.has(Float) or given.has(Float)):
        return False
    return right.is_zero or given.is_zero or bool(abs(difference) <= SIGNIFICANT * abs(right))
