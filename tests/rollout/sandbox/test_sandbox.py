"""Verdicts on honest programs, in both backends: what counts as right, what it costs, and what a user is told."""

import importlib
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from layersweep.rollout.sandbox import (
    AssertTests,
    CallTests,
    Limits,
    Sandbox,
    SandboxError,
    ScriptTests,
    backend,
    comparison,
    diagnose_backends,
    process,
    programs,
)
from layersweep.rollout.sandbox.inside import common_names
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
        ("3.0", 3, True),
        ("2.9999999999999996", 3, True),
        ("[10**16 + 1]", [10**16], False),
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
        ("print('1'); print('2')", "1 2", False),
        ("print('Yes')", "yes", False),
        ("print('x' * 300_000)", "x" * 300_000, True),
        ("import sys; sys.stdout.write('a'); sys.exit(0)", "a", True),
        ("print('a'); exit()", "a", True),
        ("print('a'); exit(1)", "a", True),  # LiveCodeBench and verl pass over SystemExit
        ("print('a'); 1 / 0", "a", False),
        ("print(open('/dev/stdin').read() + 'a')", "a", True),
        ("open('/dev/stdout', 'w').write('a')", "a", True),
        ("print(10**5000)", "1" + "0" * 5000, True),
        ("import threading; threading.Thread(target=lambda: print('a')).start()", "a", True),
        ("if __name__ == '__main__': print('a')", "a", True),
    ]
    batch = [ScriptTests(program, ("",), (wanted,)) for program, wanted, _ in cases]
    assert [verdict.passed for verdict in verdicts("auto", batch)] == [passes for _, _, passes in cases]


@pytest.mark.parametrize(
    ("got", "wanted", "same"),
    [
        ("1.50", "1.5", True),
        ("1e3", "1000", True),  # as LiveCodeBench, which compares decimals
        ("3.0", "3", True),
        ("3", "3.0", True),
        ("-0", "0", True),
        ("0.3333333333333333", "0.333333333", True),
        ("0.30000000000000004", "0.3", True),
        ("1.0E-7", "0", True),
        ("2.9999999999999996", "3", True),  # a right result, computed in floats
        ("12345678.9", "12345678.90001", True),  # relative error 8e-13
        ("0.33", "0.333333333", False),
        ("3.14", "3.14159265", False),
        ("0.500002", "0.5", False),
        ("3.5", "3", False),
        ("50000000000000001", "50000000000000000", False),
        ("5e16", "50000000000000001", False),
        ("100000000.5", "100000000", False),  # an integer is exact
        ("1 0.333333 x", "1 0.3333330001 x", True),
        ("1 0.333333 x", "1 0.3333330001 y", False),
        ("nan", "0.5", False),
        ("nan", "nan", True),
        ("1e999999999", "1.5", False),
        ("1_000.0", "1000", False),
        ("inf", "inf", True),
        ("\u0661", "1", False),  # an Arabic digit
    ],
)
def test_numbers_in_outputs_compare_by_value(got, wanted, same):
    assert comparison.same_text(got, wanted) is same


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


COMMON = (
    "heappush heappop heapify heapq cache lru_cache reduce cmp_to_key inf gcd lcm comb perm ceil floor sqrt isqrt pi "
    "accumulate permutations combinations product groupby pairwise chain bisect_left bisect_right insort "
    "defaultdict deque Counter OrderedDict namedtuple deepcopy itemgetter xor ascii_lowercase digits findall "
    "timedelta mean median randint shuffle StringIO setrecursionlimit stdin maxsize dumps loads "
    "List Dict Optional Tuple Any "
    "string.digits re.sub datetime.date collections.deque bisect.bisect copy.copy math.gcd random.seed "
    "statistics.mode itertools.chain functools.partial operator.add io.StringIO sys.stdin json.dumps"
).split()


@pytest.mark.parametrize("name", BACKENDS)
def test_the_names_that_livecodebench_and_verl_import(name):
    """A program may use them without an import; what it defines itself, and Python's builtins, come before them."""
    uses = f"class Solution:\n  def f(self, x): return [{', '.join(COMMON)}] and pow(2, 5, 7) + open(0).fileno()"
    script = f"from __future__ import annotations\nused = [{', '.join(COMMON)}]\nprint(gcd(4, 6) * int(input()))"
    own = "def gcd(a, b): return 7\ndef f(x): return gcd(4, 6)"
    missing = "def g(): pass"  # `comb` is under test, and this program does not define it
    batch = [
        CallTests(uses, "f", ((1,),), (4,), common_names=True),
        ScriptTests(script, ("20\n", "21\n"), ("40\n", "42\n"), common_names=True),
        CallTests(own, "f", ((1,),), (7,), common_names=True),
        CallTests(missing, "comb", ((4, 2),), (6,), common_names=True),
        CallTests("def f(x): return Counter(x).most_common(1)[0][0]", "f", (("aab",),), ("a",), common_names=True),
        CallTests("class Solution:\n  def merge(self, a): return a", "merge", ((1,),), (1,), common_names=True),
        CallTests(uses, "f", ((1,),), (4,)),
    ]
    assert [verdict.passed for verdict in verdicts(name, batch)] == [True, True, True, False, True, True, False]


COMMON_NAMES = """
import sys
sys.path.insert(0, sys.argv[1])
import common_names
namespace = {}
exec(
    "from typing import *\\nfrom string import *\\nfrom re import *\\nfrom datetime import *\\n"
    "from collections import *\\nfrom heapq import *\\nfrom bisect import *\\nfrom copy import *\\n"
    "from math import *\\nfrom random import *\\nfrom statistics import *\\nfrom itertools import *\\n"
    "from functools import *\\nfrom operator import *\\nfrom io import *\\nfrom sys import *\\nfrom json import *\\n"
    "import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools\\n"
    "import functools, operator, io, sys, json\\n",
    namespace,
)
names = namespace.keys() - {"__builtins__"}
print([name for name in names if common_names.NAMES[name] is not namespace[name]])
print(len(names) > 400, set(common_names.NAMES) - names)
"""


def test_common_names_are_the_modules_own():
    """All public names of the 17 modules, the later module's where two share one, as Python's own import has it. In a
    process of its own: others replace what `sys` holds, such as its streams."""
    inside = Path(common_names.__file__).parent
    done = subprocess.run([sys.executable, "-c", COMMON_NAMES, str(inside)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nTrue {'typing'}\n"


@pytest.mark.parametrize("name", BACKENDS)
def test_recursion_as_deep_as_the_peers_allow(name):
    """LiveCodeBench sets Python's limit to 50,000, verl to 600,000; calls through C need a stack to match."""
    recursive = [
        "def f(n): return n and f(n - 1) + 1\nprint(f(int(input())))",
        "import functools\n@functools.cache\ndef f(n): return n and f(n - 1) + 1\nprint(f(int(input())))",
        "def f(n): return n and sum(f(m) for m in [n - 1]) + 1\nprint(f(int(input())))",
        "class F:\n  def __call__(self, n): return n and self(n - 1) + 1\nprint(F()(int(input())))",
        "def f(n): return f(n + 1)\nf(int(input()))",
    ]
    batch = [ScriptTests(program, ("49000",), ("49000",)) for program in recursive]
    found = verdicts(name, batch, Limits(cpu_seconds=5))
    assert [verdict.passed for verdict in found] == [True] * 4 + [False]
    called = CallTests("def f(n): return n and f(n - 1) + 1", "f", ((49_000,), (300_000,)), (49_000, 300_000))
    assert verdicts(name, [called], Limits(cpu_seconds=5))[0].passed


BURN = """
import time
def burn(seconds, wanted):
    start = time.process_time()
    while time.process_time() - start < seconds: pass
    return wanted
"""


@pytest.mark.parametrize("name", BACKENDS)
def test_each_call_has_the_whole_time_limit(name):
    """Limit 1 s of CPU: four calls of 0.6 s pass, one of 1.4 s does not."""
    batch = [
        CallTests(BURN, "burn", ((0.6, 1), (0.6, 2), (0.6, 3), (0.6, 4)), (1, 2, 3, 4)),
        CallTests(BURN + "burn(0.6, 0)", "burn", ((0.6, 1),), (1,)),  # loading has a limit of its own
        CallTests(BURN, "burn", ((0.1, 1), (1.4, 2)), (1, 2)),
        CallTests(BURN, "burn", ((0.1, 1), (30, 2), (0.1, 3)), (1, 2, 3)),
        CallTests("import time\ntime.sleep(1000)", "burn", ((0, 1),), (1,)),
    ]
    reasons = ["passed", "passed", "test 2: time", "test 2: time", "test 1: time"]
    assert [verdict.reason for verdict in verdicts(name, batch, workers=2)] == reasons


def test_all_calls_together_have_a_limit_too(monkeypatch):
    """Three times the limit of 1 s, here: three calls of 0.9 s end within it, the fourth does not."""
    monkeypatch.setattr(programs, "_MOST_CALL_LIMITS", 3)
    (verdict,) = verdicts("subprocess", [CallTests(BURN, "burn", ((0.9, 1),) * 40, (1,) * 40)])
    assert verdict.reason == "test 4: time"


@pytest.mark.parametrize(
    ("cpu", "wall", "left"),
    [
        (0.0, 1.0, 1.0),  # 1 of CPU, 5 - 1 of wall time
        (0.0, 4.5, 0.5),  # asleep
        (0.0, 5.0, 0.0),
        (0.75, 20.0, 0.25),  # a busy machine: 20 s of wall time are less than 30 times the CPU time
        (0.1, 7.5, 0.5),  # waited for 7.5 - 3 s
        (1.0, 1.0, 0.0),
    ],
)
def test_clock_of_a_call(monkeypatch, cpu, wall, left):
    """Limits of 1 s of CPU and 5 s of wall time; the second call has them anew, two calls together twice."""
    monkeypatch.syspath_prepend(process.INSIDE)
    supervisor = importlib.import_module("supervisor")
    now = {"cpu": 2.0, "wall": 100.0}
    clocks = SimpleNamespace(clock_gettime=lambda number: now["cpu"], monotonic=lambda: now["wall"])
    monkeypatch.setattr(supervisor, "time", clocks)
    clock = supervisor.Clock([1], cpu_seconds=1, wall_seconds=5, budget=2)
    now |= {"cpu": 2.0 + cpu, "wall": 100.0 + wall}
    assert clock.seconds_left() == pytest.approx(left)
    clock.next_call()
    assert clock.seconds_left() == pytest.approx(min(1.0, 2.0 - cpu, 10.0 - (wall - 30 * cpu)))


def test_wrapped_results():
    """`[3]` as APPS writes 3, or as a list of one number; one way for all results of a problem."""
    batch = [
        CallTests("def f(x): return x", "f", ((1,), (2,)), ([1], [2]), wrapped=True),
        CallTests("def f(x): return [x]", "f", ((1,), (2,)), ([1], [2]), wrapped=True),
        CallTests("def f(x): return [x] if x == 1 else x", "f", ((1,), (2,)), ([1], [2]), wrapped=True),
        CallTests("def f(x): return x", "f", ((1,), (2,)), ([1], [2])),
        CallTests("def f(x): return [[x]]", "f", ((1,), (2,)), ([1], [2]), wrapped=True),
        CallTests("def f(x): return [x]", "f", ((1,), (2,)), ([[1]], [[2]]), wrapped=True),
    ]
    assert [verdict.passed for verdict in verdicts("auto", batch)] == [True, True, False, False, False, True]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_program_that_takes_the_sandbox_down_takes_only_its_own_verdict(name, monkeypatch):
    run_case = process.SandboxProcess.run_case

    def killed(self, *frames):
        if "deadly" in str(frames):
            self._process.kill()
            self._process.stdout.read()  # of bubblewrap, until what runs in it is gone as well
        return run_case(self, *frames)

    monkeypatch.setattr(process.SandboxProcess, "run_case", killed)
    found = verdicts(name, [doubling(DOUBLE), doubling("# deadly\n" + DOUBLE), doubling(DOUBLE)], workers=1)
    assert [verdict.passed for verdict in found] == [True, False, True]
    assert found[1].reason.startswith("no verdict")


@pytest.mark.parametrize("name", BACKENDS)
def test_same_program_same_verdict(name):
    program = "print(*{'alpha', 'beta', 'gamma', 'delta'})"
    case = {"kind": "script", "common_names": False, "budget": 1, "input": b"", "output_bytes": 1000}
    outputs = set()
    for _ in range(3):
        sandbox = process.SandboxProcess(name, QUICK)
        outputs.add(sandbox.run_case(case, program))
        sandbox.close()
    assert len(outputs) == 1  # the order of a set depends on the hash seed, which is fixed


def test_refuses_to_fall_back_and_says_how_to_mend_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    backend.unavailable_reason.cache_clear()
    backend._warn.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"sandbox: bubblewrap does not work here.*no bwrap.*apt-get install"):
            Sandbox("bubblewrap")
        with caplog.at_level(logging.WARNING):
            assert Sandbox("auto").backend == Sandbox("auto").backend == "subprocess"
        assert len(caplog.records) == 1 and "plain subprocess" in caplog.text
        assert diagnose_backends()["auto"] == "subprocess"
        assert "apt-get install" in diagnose_backends()["bubblewrap"]
    finally:
        backend.unavailable_reason.cache_clear()


def test_without_landlock_the_weakness_is_told(monkeypatch):
    monkeypatch.setattr(backend.confine, "landlock_version", lambda: 0)
    assert "can READ every file" in backend.weaknesses()


def test_nothing_to_judge():
    assert Sandbox("auto").judge([]) == []
    with pytest.raises(ValueError, match="without tests"):
        Sandbox("auto").judge([ScriptTests("print()", (), ())])
