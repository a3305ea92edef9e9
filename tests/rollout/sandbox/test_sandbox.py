"""Verdicts on honest programs, in both backends: what counts as right, what it costs, and what a user is told."""

import logging
import time

import pytest

from layersweep.rollout.sandbox import (
    AssertTests,
    CallTests,
    Limits,
    Sandbox,
    SandboxError,
    ScriptTests,
    backend,
    doctor,
)
from tests.helpers.judged import BACKENDS, DOUBLE, QUICK, doubling, verdicts


@pytest.mark.parametrize("name", BACKENDS)
def test_helpers_of_the_tests_are_not_the_programs(name):
    setup = "import math\ndef poly(xs, x): return sum(c * x**i for i, c in enumerate(xs))\ndef find_zero(xs): pass"
    tests = "assert abs(poly([-2, 1], find_zero([-2, 1]))) < 1e-4\nassert math.isclose(find_zero([-6, 3]), 2)"
    cheats = "import math\npoly = abs = lambda *a: 0\nmath.isclose = lambda *a: True\ndef find_zero(xs): return 0.0"
    solves = "def find_zero(xs): return -xs[0] / xs[1]"
    batch = [AssertTests(program, tests, ("find_zero",), setup) for program in (cheats, solves)]
    assert [verdict.passed for verdict in verdicts(name, batch)] == [False, True]


def test_values_cross_between_program_and_tests_unchanged():
    program = (
        "import collections, decimal, fractions\n"
        "def same(x): return x\n"
        "def sort(x): x.sort()\n"
        "def fail(x): raise ValueError('no')\n"
        "def count(n):\n  while True:\n    yield n\n    n += 1\n"
        "def counter(text): return collections.Counter(text)\n"
        "def half(): return decimal.Decimal('0.5'), fractions.Fraction(1, 2)\n"
        "class Node:\n  def __init__(self, value): self.value, self.next = value, None\n"
        "def total(node): return node.value + (total(node.next) if node.next else 0)\n"
    )
    tests = """
from decimal import Decimal
from fractions import Fraction
for value in (None, True, 10**30, -0.5, float('inf'), 2j, 'é\\n', b'\\0', [1, [2]], (1, (2,)), {1, 2}, {(1, 2): {3}},
              frozenset('ab'), range(3), {'a': None}):
    assert same(value) == value and type(same(value)) is type(value), value
numbers = [3, 1, 2]
assert sort(numbers) is None and numbers == [1, 2, 3]
try:
    fail(1)
    raise RuntimeError
except ValueError as error:
    assert str(error) == 'no'
stream = count(5)
assert [next(stream), next(stream)] == [5, 6]
assert counter('aab') == {'a': 2, 'b': 1}
assert half() == (Decimal('0.5'), Fraction(1, 2))
first = Node(1)
first.next = Node(41)
assert total(first) == 42 and first.next.value == 41
assert first == first and not first == Node(1)
"""
    assert verdicts("auto", [AssertTests(program, tests, ())])[0].reason == "passed"


def test_call_tests_compare_by_value():
    program = "class Solution:\n  def f(self, x): return eval(x)\ndef g(x): return eval(x)"
    cases = [
        ("(1, [2, (3,)])", [1, [2, [3]]], True),
        ("[1, 2, 3]", [1, 2], False),
        ("0.1 + 0.2", 0.3, True),
        ("0.31", 0.3, False),
        ("10 ** 400", 0.5, False),
        ("float('nan')", 0.5, False),
        ("{1: 'a'}", {"1": "a"}, True),
        ("{'a': 1, 'b': 1}", {"a": 1, "b": 2}, False),
        ("'1'", 1, False),
        ("{1, 2}", [1, 2], False),
        ("object()", None, False),
        ("__import__('decimal').Decimal('sNaN')", 1, False),
        ("None", None, True),
    ]
    for function in ("f", "g"):
        batch = [CallTests(program, function, ((source,),), (wanted,)) for source, wanted, _ in cases]
        assert [verdict.passed for verdict in verdicts("auto", batch)] == [passes for _, _, passes in cases]


def test_script_outputs_compare_word_by_word():
    cases = [
        ("print('1  2 '); print()", "1 2\n", True),
        ("print('1.50')", "1.5", True),
        ("print('1e3')", "1000", False),
        ("print('1'); print('2')", "1 2", False),
        ("print('Yes')", "yes", False),
        ("print('x' * 300_000)", "x" * 300_000, True),
        ("import sys; sys.stdout.write('a'); sys.exit(0)", "a", True),
        ("print('a'); exit()", "a", True),
        ("print('a'); exit(1)", "a", False),
        ("import threading; threading.Thread(target=lambda: print('a')).start()", "a", True),
        ("if __name__ == '__main__': print('a')", "a", True),
    ]
    batch = [ScriptTests(program, ("",), (wanted,)) for program, wanted, _ in cases]
    assert [verdict.passed for verdict in verdicts("auto", batch)] == [passes for _, _, passes in cases]


@pytest.mark.parametrize("name", BACKENDS)
def test_honest_programs_have_room(name):
    batch = [
        # Deep recursion through C, threads, a large input that is not read, much of the standard library.
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n"
        "f = lru_cache(None)(lambda n: n and f(n - 1) + 1)\nprint(f(30_000))",
        "from concurrent.futures import ThreadPoolExecutor as T\nprint(sum(T(20).map(int, ['1500'] * 20)))",
        "print(30000)",
        "import asyncio, collections, csv, dataclasses, datetime, decimal, hashlib, heapq, itertools, json, logging, "
        "random, re, statistics, typing, uuid\nasync def f(): await asyncio.sleep(0.01); return 30_000\n"
        "print(asyncio.run(f()))",
    ]
    tests = [ScriptTests(program, ("1\n" * 500_000,), ("30000",)) for program in batch]
    assert [verdict.reason for verdict in verdicts(name, tests, Limits(cpu_seconds=5))] == ["passed"] * len(batch)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_program_that_takes_the_sandbox_down_takes_only_its_own_verdict(name, monkeypatch):
    ask = backend.SandboxProcess.ask

    def killed(self, *frames):
        if "deadly" in str(frames):
            self._process.kill()
            self._process.wait()
        return ask(self, *frames)

    monkeypatch.setattr(backend.SandboxProcess, "ask", killed)
    found = verdicts(name, [doubling(DOUBLE), doubling("# deadly\n" + DOUBLE), doubling(DOUBLE)], workers=1)
    assert [verdict.passed for verdict in found] == [True, False, True]
    assert found[1].reason.startswith("no verdict")


@pytest.mark.parametrize("name", BACKENDS)
def test_same_program_same_verdict(name):
    program = "print(*{'alpha', 'beta', 'gamma', 'delta'})"
    case = {"kind": "script", "input": b"", "output_bytes": 1000}
    outputs = set()
    for _ in range(3):
        warden = backend.SandboxProcess(name, QUICK)
        outputs.add(warden.ask(case, program))
        warden.close()
    assert len(outputs) == 1  # the order of a set depends on the hash seed, which is fixed


@pytest.mark.parametrize("name", BACKENDS)
def test_cost_is_below_50_ms_a_program(name):
    sandbox = Sandbox(name, QUICK)
    batch = [doubling(DOUBLE)] * 60 + [AssertTests("def f(): return 1", "assert f() == 1", ("f",))] * 60
    started = time.perf_counter()
    found = sandbox.judge(batch)
    assert all(verdict.passed for verdict in found)
    assert (time.perf_counter() - started) / len(batch) < 0.05


def test_refuses_to_fall_back_and_says_how_to_mend_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    backend.why_not.cache_clear()
    backend._warn.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"sandbox: bubblewrap does not work here.*no bwrap.*apt-get install"):
            Sandbox("bubblewrap")
        with caplog.at_level(logging.WARNING):
            assert Sandbox("auto").backend == Sandbox("auto").backend == "subprocess"
        assert len(caplog.records) == 1 and "plain subprocess" in caplog.text
        assert doctor()["auto"] == "subprocess" and "apt-get install" in doctor()["bubblewrap"]
    finally:
        backend.why_not.cache_clear()


def test_without_landlock_the_weakness_is_told(monkeypatch):
    monkeypatch.setattr(backend.confine, "landlock_version", lambda: 0)
    assert "can READ every file" in backend.weaknesses()


def test_nothing_to_judge():
    assert Sandbox("auto").judge([]) == []
    with pytest.raises(ValueError, match="without tests"):
        Sandbox("auto").judge([ScriptTests("print()", (), ())])
