"""What a part of the check finds, how it travels to the table, and the table."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

MARK = "FINDING "


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    part: str
    what: str
    value: str
    wanted: str = ""
    """The criterion; "" where there is none."""
    met: bool | None = None
    """Whether it is met; None where there is none."""
    must: bool = True
    """Whether the check fails where it is not met; otherwise it is a target."""

    @property
    def verdict(self) -> str:
        if self.met is None:
            return ""
        return "pass" if self.met else "FAIL" if self.must else "missed"


def say(part: str, what: str, value: object, wanted: str = "", met: bool | None = None, must: bool = True) -> None:
    """Print a finding for the process that collects them."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    met = None if met is None else bool(met)
    print(MARK + json.dumps(asdict(Finding(part, what, text, wanted, met, must))), flush=True)


def findings(output: Iterable[str]) -> list[Finding]:
    """Read the findings in a part's output."""
    return [Finding(**json.loads(line[len(MARK) :])) for line in output if line.startswith(MARK)]


def table(found: Sequence[Finding]) -> str:
    """Write a Markdown table."""
    rows = [("part", "what", "value", "wanted", ""), *((f.part, f.what, f.value, f.wanted, f.verdict) for f in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
