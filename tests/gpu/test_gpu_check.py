"""The check for GPUs, as far as it runs without one: its table, and its parts in small sizes."""

import subprocess
import sys

import pytest

from tests.gpu.findings import MARK, Finding, findings, table


def test_what_a_part_prints_is_a_line_of_the_table():
    lines = ["vLLM says something", MARK + '{"part": "engine", "what": "speed", "value": "3", "wanted": ">= 4", '
             '"met": false, "must": false}']  # fmt: skip
    assert findings(lines) == [Finding("engine", "speed", "3", ">= 4", met=False, must=False)]


def test_what_must_hold_fails_and_a_target_is_missed():
    rows = [
        Finding("a", "right", "0.1", "< 0.05", met=False),
        Finding("a", "fast", "0.1", ">= 0.8", met=False, must=False),
        Finding("b", "right", "0.01", "< 0.05", met=True),
        Finding("b", "seconds", "7"),
    ]
    assert [row.verdict for row in rows] == ["FAIL", "missed", "pass", ""]
    lines = table(rows).splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")] == ["", "a", "right", "0.1", "< 0.05", "FAIL", ""]


@pytest.mark.slow
@pytest.mark.long
def test_all_parts_run_on_a_cpu(tmp_path):
    """Everything but speeds and a GPU's memory: exit code 0, each part at its end."""
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count("| ended ") == 9 and "FAIL" not in done.stdout
    assert "within its limits | pass" in done.stdout
