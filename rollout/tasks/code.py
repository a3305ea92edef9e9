"""Programming: the program in a response runs in the sandbox and must pass every test."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from layersweep.policies.strict import StrictModel
from layersweep.rollout.data.prompt_data import DataConfig, PromptData
from layersweep.rollout.sandbox import Limits, Sandbox, Setting
from layersweep.rollout.types import Prompt, Response, Score, Split

from .code_data import COLUMNS, parse_tests, question_of, with_program

_LANGUAGES = ("", "python", "python3", "py")


class CodeConfig(StrictModel):
    """Programming problems from a data set, judged by their tests."""

    type: Literal["code"] = "code"
    data: DataConfig
    """The problems: `reward_model.ground_truth` holds the tests, or the row has the columns of HumanEval, MBPP,
    LiveCodeBench, DeepCoder or APPS. Programs see Python's standard library alone, not numpy."""
    sandbox: Setting = "auto"
    """Where programs run; `bubblewrap` refuses to fall back to a subprocess."""
    cpu_seconds: int = Field(6, ge=1)
    """Bound on one start of a program: one standard input, or all calls of a function. Sleeping, it may take three
    times as long."""
    memory_mib: int = Field(1024, ge=64)
    """Bound on the memory of one program."""
    processes: int | None = Field(None, ge=1)
    """Programs that run at a time; null is one for each core that this process may use."""

    @property
    def fetched(self) -> str | None:
        """What a run fetches from elsewhere, so that a plan does not check it."""
        return self.data.fetched

    def build(self) -> "CodeTask":
        """Reads the data; a DataError says what is wrong with it, a SandboxError why programs cannot run here."""
        return CodeTask(self)


class CodeTask:
    """The task of a CodeConfig. Reward 1 for a program that passes all tests, else 0."""

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
            code = extract_program(response.text)
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


class _CodeData(PromptData):
    """Prompt data whose question is made of several columns."""

    def _raw_rows(self) -> Iterator[tuple[str, Any]]:
        for where, raw in super()._raw_rows():
            yield where, question_of(raw, self._config.columns) if isinstance(raw, dict) else raw


def extract_program(text: str) -> str | None:
    """The last fenced block of Python in a response, what follows an open fence, or else the whole text.

    None when there is no text, or only blocks in other languages. What a model wrote before `</think>` is left out.
    """
    text = text.rpartition("</think>")[2]
    closed: list[str] = []
    block: list[str] | None = None
    fences, language = 0, ""
    for line in text.splitlines(keepends=True):
        if not line.lstrip().startswith("```"):
            if block is not None:
                block.append(line)
            continue
        fences += 1
        if block is None:
            block, language = [], line.strip().strip("`").strip().lower()
        else:
            if language in _LANGUAGES:
                closed.append("".join(block))
            block = None
    if closed:
        code = closed[-1]
    elif block is not None and language in _LANGUAGES:
        code = "".join(block)
    else:
        code = "" if fences else text
    return code if code.strip() else None


def complete(stub: str, function: str, code: str) -> str:
    """HumanEval: a whole program, of its stub (imports, helpers, signature) and what the model wrote.

    That is either the function once more or its body; a body ends before the first line that is not indented.
    """
    stub = stub.rstrip() + "\n"
    if re.search(rf"^(async\s+)?def\s+{re.escape(function)}\b", code, re.MULTILINE):
        return f"{stub}\n\n{code}"
    lines = code.split("\n")
    end = next((at for at, line in enumerate(lines) if at and line.strip() and not line[0].isspace()), len(lines))
    return stub + "\n".join(lines[:end]) + "\n"
