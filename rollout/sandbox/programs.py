"""Kinds of tests for a program, and how its output becomes a verdict. Expected outputs stay in this process."""

import ast
import builtins
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from layersweep.rollout.sandbox.comparison import same_text, same_value
from layersweep.rollout.sandbox.inside import value_codec

RunCase = Callable[..., tuple[str, bytes]]
"""Runs a case in a sandbox and returns how it ended and its output: `SandboxProcess.run_case`."""

_SPARE_BYTES = 1 << 16
_MOST_CALL_LIMITS = 20


@dataclass(frozen=True)
class Verdict:
    """Judgement on one program."""

    passed: bool
    """Whether every test passed."""
    compiles: bool
    """Whether the text is a Python program at all."""
    reason: str
    """`passed`, or the first thing that went wrong. Holds what a program wrote: print it with care."""


@dataclass(frozen=True)
class ScriptTests:
    """Tests of a program that reads standard input and writes standard output; one start and its limits for each."""

    program: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """Wanted outputs, compared by `comparison.same_text`."""
    common_names: bool = False
    """Whether the program finds the names of `inside.common_names`."""

    def judge(self, run_case: RunCase) -> Verdict:
        """Return the verdict, up to the first test that fails."""
        for number, (given, wanted) in enumerate(zip(self.inputs, self.outputs, strict=True), 1):
            case = {
                "kind": "script",
                "common_names": self.common_names,
                "budget": 1,
                "input": given.encode("utf-8", "surrogatepass"),
                "output_bytes": _SPARE_BYTES + 2 * len(wanted.encode("utf-8", "surrogatepass")),
            }
            ended, output = run_case(case, self.program)
            if ended != "ok":
                return Verdict(False, ended != "no program", f"test {number}: {ended}")
            if not same_text(output.decode("utf-8", "replace"), wanted):
                return Verdict(False, True, f"test {number}: wrong output")
        return _passed(len(self.inputs))


@dataclass(frozen=True)
class CallTests:
    """Tests of a function, or of a method of a class `Solution`, that is called with each list of arguments.

    All calls are made in one start of the program. The limits of time hold for each call, and for loading the program;
    all together may take as much as 20 calls.
    """

    program: str
    function: str
    arguments: tuple[tuple[Any, ...], ...]
    results: tuple[Any, ...]
    """Wanted results, compared by `comparison.same_value`."""
    wrapped: bool = False
    """Whether each wanted result may be a list that holds the result: APPS writes `[3]` for 3, and the data sets
    made of it mix both ways. One way must hold for all results."""
    common_names: bool = False
    """Whether the program finds the names of `inside.common_names`."""

    def judge(self, run_case: RunCase) -> Verdict:
        """Return the verdict, up to the first test that fails."""
        loaded = value_codec.request("len", "__name__", ())  # answered once the program is loaded
        requests = loaded + b"".join(value_codec.request("call", self.function, each) for each in self.arguments)
        case = {
            "kind": "calls",
            "common_names": self.common_names,
            "budget": min(1 + len(self.arguments), _MOST_CALL_LIMITS),
            "input": requests,
            "output_bytes": _SPARE_BYTES + 8 * len(json.dumps(self.results)) + len(requests),
        }
        ended, output = run_case(case, self.program)
        replies = output.split(b"\n")[1 : len(self.results) + 1]
        readings = list(self._readings())
        for number in range(len(self.results)):
            try:
                value = json.loads(replies[number])["value"]
                readings = [wanted for wanted in readings if same_value(value, wanted[number])]
            except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
                reason = "no result" if ended == "ok" else ended
                return Verdict(False, ended != "no program", f"test {number + 1}: {reason}")
            if not readings:
                return Verdict(False, True, f"test {number + 1}: wrong result")
        return _passed(len(self.results))

    def _readings(self) -> Iterator[tuple[Any, ...]]:
        yield self.results
        if self.wrapped:
            yield tuple(value[0] for value in self.results)


@dataclass(frozen=True)
class AssertTests:
    """Tests written in Python that call the program's functions. They run in another process than the program."""

    program: str
    tests: str
    functions: tuple[str, ...]
    """Names under test: the program's even where `setup` or Python has something of that name. So is, without being
    listed, every name that the tests use and neither they nor Python define."""
    setup: str = ""
    """Code that the tests need besides: imports, helpers of the problem's statement."""

    def judge(self, run_case: RunCase) -> Verdict:
        """Return the verdict: `passed` only when the tests ran to their end.

        Raises:
            SyntaxError: the tests are not Python.
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
        ended, said = run_case({"kind": "tests", "common_names": False, "budget": 1}, self.program, tests)
        if ended == "ok" and said == b"passed":
            return Verdict(True, True, "passed")
        reason = said.decode("utf-8", "replace") or "the tests came to no end"
        return Verdict(False, ended != "no program", reason if ended == "ok" else ended)


Program = ScriptTests | CallTests | AssertTests


def _passed(tests: int) -> Verdict:
    if not tests:
        raise ValueError("a program without tests cannot be judged")
    return Verdict(True, True, "passed")
