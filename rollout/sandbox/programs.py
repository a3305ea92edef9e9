"""What a program can be tested with, and how its output becomes a verdict. Expected outputs stay in this process."""

import ast
import builtins
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from layersweep.rollout.sandbox.inside import wire

Ask = Callable[..., tuple[str, bytes]]
"""Runs a case in a sandbox: how it ended and its output."""

_SPARE_BYTES = 1 << 16
_NUMBER = re.compile(r"[-+]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})", re.ASCII)
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Verdict:
    """The judgement on one program."""

    passed: bool
    """Whether every test passed."""
    compiles: bool
    """Whether the text is a Python program at all."""
    reason: str
    """`passed`, or the first thing that went wrong. Holds what a program wrote: print it with care."""


@dataclass(frozen=True)
class ScriptTests:
    """Reads standard input, writes standard output; one start for each test."""

    program: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """Compared line by line and word by word; numbers in decimal notation by their value."""

    def judge(self, ask: Ask) -> Verdict:
        """The verdict, up to the first test that fails."""
        for number, (given, wanted) in enumerate(zip(self.inputs, self.outputs, strict=True), 1):
            room = _SPARE_BYTES + 2 * len(wanted.encode())
            ended, output = ask({"kind": "script", "input": given.encode(), "output_bytes": room}, self.program)
            if ended != "ok":
                return Verdict(False, ended != "no program", f"test {number}: {ended}")
            if not same_text(output.decode("utf-8", "replace"), wanted):
                return Verdict(False, True, f"test {number}: wrong output")
        return _passed(len(self.inputs))


@dataclass(frozen=True)
class CallTests:
    """Defines a function, or a class `Solution` with a method, that is called with each list of arguments."""

    program: str
    function: str
    arguments: tuple[tuple[Any, ...], ...]
    results: tuple[Any, ...]
    """Compared by value; tuples equal lists, keys are text as in JSON, and a wanted float is met within 1e-6."""

    def judge(self, ask: Ask) -> Verdict:
        """The verdict; all calls are made in one start of the program."""
        requests = b"".join(wire.request("call", self.function, arguments) for arguments in self.arguments)
        room = _SPARE_BYTES + 8 * len(json.dumps(self.results)) + len(requests)
        ended, output = ask({"kind": "calls", "input": requests, "output_bytes": room}, self.program)
        replies = output.split(b"\n")[: len(self.results)]
        for number, wanted in enumerate(self.results, 1):
            try:
                same = same_value(json.loads(replies[number - 1])["value"], wanted)
            except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
                return Verdict(
                    False, ended != "no program", f"test {number}: {'no result' if ended == 'ok' else ended}"
                )
            if not same:
                return Verdict(False, True, f"test {number}: wrong result")
        return _passed(len(self.results))


@dataclass(frozen=True)
class AssertTests:
    """Tests written in Python that call the program's functions. They run in another process than the program."""

    program: str
    tests: str
    functions: tuple[str, ...]
    """Names under test: the program's even where `setup` or Python has something of that name. So is, without being
    listed, every name that the tests use and nobody on their side defines."""
    setup: str = ""
    """What the tests need besides: imports, helpers of the problem's statement."""

    def judge(self, ask: Ask) -> Verdict:
        """The verdict: `passed` only when the tests ran to their end.

        Raises:
            SyntaxError: when the tests are not Python.
        """
        nodes = [*ast.walk(ast.parse(self.setup)), *ast.walk(ast.parse(self.tests))]
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        owners = {
            node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        modules = owners & sys.stdlib_module_names  # `math.isclose`: the program's own `math` must not decide
        tests = {
            "tests": self.tests,
            "setup": self.setup,
            "functions": self.functions,
            "modules": tuple(modules),
            "borrowed": tuple(used - modules - set(dir(builtins))),
        }
        ended, said = ask({"kind": "tests"}, self.program, tests)
        if ended == "ok" and said == b"passed":
            return Verdict(True, True, "passed")
        reason = said.decode("utf-8", "replace") or "the tests came to no end"
        return Verdict(False, ended != "no program", reason if ended == "ok" else ended)


Program = ScriptTests | CallTests | AssertTests


def _passed(tests: int) -> Verdict:
    if not tests:
        raise ValueError("a program without tests cannot be judged")
    return Verdict(True, True, "passed")


def same_text(got: str, wanted: str) -> bool:
    """Whether two outputs agree: blanks at the ends of lines and of the text do not count, `1.0` equals `1`."""
    one, other = ([line.split() for line in text.strip().splitlines()] for text in (got, wanted))
    return len(one) == len(other) and all(
        len(a) == len(b) and all(x == y or _same_number(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def _same_number(one: str, other: str) -> bool:
    return bool(_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)) and Decimal(one) == Decimal(other)


def same_value(got: Any, wanted: Any) -> bool:
    """Whether a value agrees with the one wanted, as `CallTests.results` says.

    `got` is what `wire.encode` made of it, and is not decoded: sets and dicts built from a hostile program's choice
    of keys can take for ever to build.
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
        return got == wanted or math.isclose(got, wanted, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return not isinstance(got, (list, dict)) and bool(got == wanted)
