"""What the tests of the sandbox share: both backends, tight limits, and a task whose right answers are known."""

import pytest

from layersweep.rollout.sandbox import Limits, Sandbox, ScriptTests, backend

QUICK = Limits(cpu_seconds=1, memory_bytes=512 << 20)

BACKENDS = [
    pytest.param(
        "bubblewrap",
        marks=pytest.mark.skipif(
            backend.unavailable_reason("bubblewrap") is not None,
            reason=f"bubblewrap: {backend.unavailable_reason('bubblewrap')}",
        ),
    ),
    "subprocess",
]

DOUBLE = "print(2 * int(input()))"
"""Right for the tests of `doubling`: 20 gives 40, 21 gives 42."""


def doubling(program):
    return ScriptTests(program, inputs=("20\n", "21\n"), outputs=("40\n", "42\n"))


def verdicts(name, programs, limits=QUICK, workers=4):
    return Sandbox(name, limits, workers).judge(programs)
