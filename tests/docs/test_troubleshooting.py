"""docs/troubleshooting.md: every message that it quotes is in the source."""

import ast
import re
from functools import cache

import pytest

from .pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
MESSAGES = [
    message
    for entry in re.findall(r"^- ((?:`[^`]+`(?:, )?)+)", PAGE.replace("\n  ", " "), re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", entry)
]


@cache
def texts() -> list[str]:
    """Every text of the source, with a null where an f-string has a value."""
    found = []
    for package in ("orchestrator", "policies", "rollout", "workers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def is_in_the_source(message: str) -> bool:
    pattern = ".{0,80}?".join(map(re.escape, re.split(r"<[^>]+>", message)))
    return any(re.search(pattern, text, re.DOTALL) for text in texts())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_source(message):
    assert len(re.sub(r"<[^>]+>", "", message)) >= 10, "too short to find"
    assert is_in_the_source(message)


def test_messages_are_found_and_told_from_others():
    assert len(MESSAGES) >= 50
    assert is_in_the_source("collapsed: no reward at all for <n> steps")
    assert not is_in_the_source("collapsed: no award at all for <n> steps")
