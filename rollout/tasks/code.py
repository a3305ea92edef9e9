"""Programming: the program in a response runs in the sandbox and must pass every test."""

import ast
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from layersweep.policies.strict import Processes, StrictModel
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import REFERENCE_SOLUTION
from layersweep.rollout.sandbox import Limits, Sandbox, Setting
from layersweep.rollout.types import Prompt, Response, Score, Split

from .code_data import COLUMNS, functions_of, parse_tests, question_of, reference_solution, with_program

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*[{.]*([^\s`{}:,=]*)[^`]*$")
_PYTHON = re.compile(r"(i?python|py|pypy)[\d.]*", re.IGNORECASE)
_NO_LABEL = re.compile("")
_MOST_PARSED = 1 << 16
"""Characters up to which a block is parsed to tell a program from an example."""


class CodeConfig(StrictModel):
    """Programming problems from a data set, judged by their tests."""

    type: Literal["code"] = "code"
    data: DataConfig
    """The problems: `reward_model.ground_truth` holds the tests, or the row has the columns of HumanEval, MBPP,
    LiveCodeBench, DeepCoder or APPS. Programs see Python's standard library alone, not numpy; tested by standard input
    or by calls, they find the names that the judges of LiveCodeBench and verl import for them (`heappush`, `inf`)."""
    sandbox: Setting = "auto"
    """Backend in which programs run; `bubblewrap` refuses to fall back to a subprocess."""
    cpu_seconds: int = Field(6, ge=1)
    """Bound on each test: one standard input, one call of a function, or one block of asserts. All calls together may
    take 20 times as long. Sleeping, a program may take three times as long."""
    memory_mib: int = Field(1024, ge=64)
    """Bound on the memory of one program."""
    processes: Processes | None = None
    """Programs that run at a time; null is one for each core that this process may use."""

    @property
    def fetched(self) -> str | None:
        """Source that a run fetches from elsewhere, so that a plan does not check it."""
        return self.data.fetched

    def build(self) -> "CodeTask":
        """Read the data; a DataError says what is wrong with it, a SandboxError why programs cannot run here."""
        return CodeTask(self)


class CodeTask:
    """Task of a CodeConfig. Reward 1 for a program that passes all tests, else 0."""

    def __init__(self, config: CodeConfig):
        self._sandbox = Sandbox(
            config.sandbox, Limits(config.cpu_seconds, config.memory_mib << 20), workers=config.processes
        )
        self.data = _CodeData(config.data, lambda raw: parse_tests(raw, config.data.columns), COLUMNS)

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """See `layersweep.rollout.data.prompt_data.PromptData.prompts`."""
        return self.data.prompts(split, count, seed)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[Score]:
        """See `rollout.tasks.base.Task.score`; `format_ok` says that there was a program and that it compiles."""
        written: list[tuple[str, str] | None] = []
        programs = {}
        for prompt, response in zip(prompts, responses, strict=True):
            code = extract_program(response.text, functions_of(prompt.truth))
            if code is not None and prompt.truth.get("stub"):
                code = complete(prompt.truth["stub"], prompt.truth["functions"][0], code)
            written.append(None if code is None else (prompt.id, code))
            if code is not None and (prompt.id, code) not in programs:
                programs[prompt.id, code] = with_program(prompt.truth, code)
        verdicts = dict(zip(programs, self._sandbox.judge(list(programs.values())), strict=True))
        return [
            Score(0.0, False) if key is None else Score(float(verdicts[key].passed), verdicts[key].compiles)
            for key in written
        ]

    def right_response(self, prompt: Prompt) -> Response | None:
        """Return the row's own program; None where it has none."""
        program = prompt.info.get(REFERENCE_SOLUTION)
        return None if program is None else Response(program, True)


class _CodeData(PromptData):
    """Prompt data whose question is made of several columns, with the row's own program where it has one."""

    def _raw_rows(self, columns: Collection[str] | None) -> Iterator[tuple[str, Any]]:
        for where, raw in super()._raw_rows(columns):
            if isinstance(raw, dict):
                raw = question_of(raw, self._config.columns) | {REFERENCE_SOLUTION: reference_solution(raw)}
            yield where, raw


def extract_program(text: str, functions: Collection[str] = ()) -> str | None:
    """Return the program in a response: a fenced block, what follows an open fence, or else the whole text.

    Of several blocks, those labelled as Python come before those without a label, and among the latter those that do
    something (call, assign, define) before examples of input and output; the last one is taken. A block that defines
    one of `functions`, or a class `Solution`, comes before others. What a model wrote before `</think>` is left out.

    Returns None when there is no text, or only blocks in other languages.
    """
    text = text.rpartition("</think>")[2]
    closed, unclosed = _fenced_blocks(text)
    labelled, bare = ([code for label, code in closed if pattern.fullmatch(label)] for pattern in (_PYTHON, _NO_LABEL))
    if len(bare) > 1:
        bare = [code for code in bare if _does_something(code)] or bare
    open_labelled, open_bare = (
        [code for label, code in unclosed if pattern.fullmatch(label)] for pattern in (_PYTHON, _NO_LABEL)
    )
    blocks = labelled or open_labelled or bare or open_bare
    if functions:
        names = "|".join(map(re.escape, functions))
        defines = re.compile(rf"^\s*(?:(?:async\s+)?def\s+(?:{names})\b|class\s+Solution\b)", re.MULTILINE).search
        blocks = [*filter(defines, labelled)] or [*filter(defines, bare)] or blocks
    code = blocks[-1] if blocks else "" if closed or unclosed else text
    return code.removeprefix("\ufeff") if code.strip() else None


def _fenced_blocks(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the closed blocks as (label, content), and the one left open at the end, if any.

    A fence with a label opens a block, even where the one before it was not closed. Lines lose as many blanks as are
    before the fence, which stands in a list, say (CommonMark, section 4.5).
    """
    closed: list[tuple[str, str]] = []
    opened: tuple[str, str, list[str]] | None = None  # fence, label, lines
    indent = 0
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        line = line[min(indent, len(line) - len(line.lstrip(" \t"))) :]
        # A longer fence holds shorter ones.
        if not found or opened and not found[1].startswith(opened[0]):
            if opened and line.rstrip().endswith(opened[0]):  # `print(1)```
                closed.append((opened[1], "".join(opened[2]) + line.rstrip().rstrip(opened[0][0])))
                opened = None
            elif opened:
                opened[2].append(line)
            continue
        if opened:
            closed.append((opened[1], "".join(opened[2])))
        indent = 0 if opened and not found[2] else len(found[0]) - len(found[0].lstrip(" \t"))
        opened = None if opened and not found[2] else (found[1], found[2], [])
    return closed, [(opened[1], "".join(opened[2]))] if opened else []


def _does_something(code: str) -> bool:
    """Return whether a block is Python (perhaps the body of a function) that calls, assigns, defines or returns."""
    acts = (ast.Call, ast.Assign, ast.AugAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Return)
    if len(code) > _MOST_PARSED:
        return True
    for source in (code, f"def body():\n{code}"):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return any(isinstance(node, acts) for node in ast.walk(tree) if getattr(node, "name", None) != "body")
    return False


def complete(stub: str, function: str, code: str) -> str:
    """Make a whole program of HumanEval's stub (imports, helpers, signature) and the code of a response.

    The code is either the function once more or its body; a body ends before the first line that is not indented.
    """
    stub = stub.rstrip() + "\n"
    if re.search(rf"^(async\s+)?def\s+{re.escape(function)}\b", code, re.MULTILINE):
        return f"{stub}\n\n{code}"
    lines = code.split("\n")
    end = next((at for at, line in enumerate(lines) if at and line.strip() and not line[0].isspace()), len(lines))
    return stub + "\n".join(lines[:end]) + "\n"
