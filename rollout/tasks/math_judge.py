"""Whether two mathematical answers are equal, by math-verify. Runs in a worker process of `rollout.subprocess_pool`."""

import logging

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

# Its own time-outs need the main thread and warn when they are off; the worker process is bounded instead.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def equal(pair: list[str]) -> bool:
    """Whether the second answer equals the first, the right one; both as LaTeX or plain text without a box."""
    right, given = (parse(f"\\boxed{{{text}}}", _TARGETS, parsing_timeout=None) for text in pair)
    return verify(right, given, timeout_seconds=None)
