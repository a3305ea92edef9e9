"""The pages that a reader sees, and the code blocks in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/README.md", "tests/README.md")),
    ROOT / "tests/benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = re.compile(r"^(?:`(?P<name>[\w.]+)`:\n\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block; `name` where a line before it says what file it is."""

    page: Path
    language: str
    text: str
    name: str | None

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.name or self.text.split(chr(10))[0]}"


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[Block]:
    """Return the fenced blocks of these languages."""
    found = [(page, match) for page in pages for match in FENCED.finditer(page.read_text())]
    return [
        Block(page, match["language"], match["text"], match["name"])
        for page, match in found
        if match["language"] in languages
    ]


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command: of `console` blocks, of text that is indented by four spaces, and of what is
    written `layersweep ...` within a line."""
    text = page.read_text()
    lines = [line.removeprefix("$ ") for block in blocks("console", pages=[page]) for line in block.text.splitlines()]
    lines += [line.strip() for line in FENCED.sub("", text).replace("\\\n", " ").splitlines() if line[:4] == "    "]
    lines += re.findall(r"`(layersweep [a-z]+ [^`]+)`", text.replace("\n", " "))
    return [words for line in lines if (words := _words(line))]


def _words(line: str) -> list[str]:
    """Return a line's words; the optional parts of a synopsis are left out, as are comments."""
    try:
        words = shlex.split(re.sub(r"\s\[[^]]*\](?=\s|$)", "", line), comments=True)
    except ValueError:  # prose, with an apostrophe
        return []
    words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "&")), None)]
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words
