"""Responses kept for reading and for scoring once more: a parquet file per evaluation and per training batch.

    <sweep>/responses/run=layer-07-seed0/step=000030/selection.math.parquet    the responses, with their scores
    <sweep>/responses/run=layer-07-seed0/step=000012/train.parquet             of the training step after 12 steps
    <sweep>/checkpoints/prompts/selection.math.parquet                         what they were scored by

`pandas.read_parquet("<sweep>/responses")` reads all of it, with the columns run and step. Each file is replaced
atomically; an evaluation that is repeated writes the same file again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from layersweep.policies.selection import run_name
from layersweep.rollout.types import Prompt, stable_seed

from .files import find_files, read_bytes, resolve_uri, write_atomically
from .table_schema import TableSchema
from .tables import PROMPTS, RESPONSES

FOLDER, PROMPT_FOLDER = "responses", "checkpoints/prompts"
TRAIN = "train"


@dataclass
class ResponseKeeper:
    """Writes the responses that the spec wants kept.

    Args:
        folder: the sweep's.
        keep: `responses` of the spec.
        final_steps: steps of the evaluations that its `final` means.
    """

    folder: str
    keep: str
    final_steps: frozenset[int]
    known_prompts: set[tuple[str, str]] = field(default_factory=set)
    """Split and suite of the prompts that this process has written."""

    def wants(self, split: str, step: int) -> bool:
        """Tell whether responses to prompts of this split, by the weights after `step` steps, are kept."""
        if self.keep == "final":
            return split != TRAIN and step in self.final_steps
        return self.keep != "none"

    def write(
        self, selection: str, seed: int, step: int, split: str, suite: str | None, columns: dict[str, Any]
    ) -> None:
        """Write one evaluation or training batch.

        Args:
            suite: None in training.
            columns: the others of RESPONSES.

        Raises:
            OSError: it could not be written.
        """
        known = {"selection": selection, "seed": seed, "split": split, "suite": suite}
        frame = RESPONSES.frame(pd.DataFrame(columns | known))
        if self.keep.startswith("sample:"):
            frame = _of_prompts(frame, int(self.keep.partition(":")[2]))
        name = split if suite is None else f"{split}.{suite}"
        folder = f"{self.folder}/{FOLDER}/run={run_name(selection, seed)}/step={step:06d}"
        _write(f"{folder}/{name}.parquet", RESPONSES, frame)

    def write_prompts(self, split: str, suite: str, prompts: Sequence[Prompt]) -> None:
        """Write what responses to a suite are scored by, once.

        Raises:
            OSError: it could not be written.
            TypeError, ValueError: a prompt's truth or info is no plain data.
        """
        if (split, suite) in self.known_prompts:
            return
        rows = [
            {
                "prompt": prompt.id,
                "text": prompt.text,
                "messages": None if prompt.messages is None else json.dumps(prompt.messages),
                "truth": json.dumps(prompt.truth),
                "info": json.dumps(prompt.info),
            }
            for prompt in prompts
        ]
        _write(f"{self.folder}/{PROMPT_FOLDER}/{split}.{suite}.parquet", PROMPTS, PROMPTS.frame(rows))
        self.known_prompts.add((split, suite))


def question_of(prompt: Prompt) -> str:
    """Return the text of a prompt, for reading."""
    if prompt.text is not None:
        return prompt.text
    return "\n\n".join(message["content"] for message in prompt.messages or ())


def _of_prompts(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the rows of `count` prompts, which depend on the prompts' names alone: the same of every run."""
    chosen = sorted(frame["prompt"].unique(), key=stable_seed)[:count]
    return frame[frame["prompt"].isin(chosen)].reset_index(drop=True)


def _write(target: str, schema: TableSchema, frame: pd.DataFrame) -> None:
    write_atomically(target, partial(schema.write, frame))


class KeptFile(NamedTuple):
    """A file of kept responses, by its path."""

    run: str
    step: int
    split: str
    suite: str | None
    target: str
    """Path or URI."""

    def read(self) -> pd.DataFrame:
        """Read its rows, with the columns of RESPONSES and `step`.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        return RESPONSES.read(self.target).assign(step=self.step)


def kept_files(folder: str) -> Iterator[KeptFile]:
    """Yield every file of kept responses of a sweep, by run and step."""
    filesystem, path = resolve_uri(f"{folder}/{FOLDER}")
    for name in find_files(filesystem, path):
        run, step, file = name.split("/") if name.count("/") == 2 else ("", "", "")
        if run.startswith("run=") and step.startswith("step=") and file.endswith(".parquet"):
            split, _, suite = file.removesuffix(".parquet").partition(".")
            target = f"{folder}/{FOLDER}/{name}"
            yield KeptFile(run.removeprefix("run="), int(step.removeprefix("step=")), split, suite or None, target)


def kept_prompts(folder: str, split: str, suite: str) -> dict[str, Prompt] | None:
    """Return prompts of a suite by identifier, as they were scored; None where they were not kept.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    content = read_bytes(f"{folder}/{PROMPT_FOLDER}/{split}.{suite}.parquet")
    if content is None:
        return None
    frame = PROMPTS.parse(content)
    frame = frame.astype(object).where(frame.notna(), None)
    return {
        row["prompt"]: Prompt(
            row["prompt"],
            row["text"],
            None if row["messages"] is None else tuple(json.loads(row["messages"])),
            json.loads(row["truth"]),
            json.loads(row["info"]),
        )
        for row in frame.to_dict("records")
    }
