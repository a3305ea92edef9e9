"""Prompt data from files or a hub: read, checked row by row, split, and served as prompts.

Two layouts are understood, row by row: the de facto one of RL post-training (`data_source, prompt[{role, content}],
ability, reward_model{style, ground_truth}, extra_info`) and plain question and answer columns. What the right answer
of a row is, the task says through a `truth` function; everything else is the same for mathematics and code.
"""

import hashlib
import heapq
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, model_validator

from layersweep.policies.strict import StrictModel
from layersweep.rollout.types import Prompt, Split

from .decontamination import contaminated
from .row_readers import DataError, hub_rows, local_files, local_rows, messages_of

logger = logging.getLogger(__name__)

SHOWN_BAD_ROWS = 5


class Columns(StrictModel):
    """The names of the columns. A row that has the prompt column is read in the de facto layout."""

    prompt: str = "prompt"
    """Messages (a list of `{role, content}`) or plain text; the answer is then `reward_model.ground_truth`, or
    the answer column where there is no `reward_model`."""
    question: str = "question"
    """The question of rows that have no prompt column."""
    answer: str = "answer"
    """The answer of rows that have no `reward_model`."""


class DataConfig(StrictModel):
    """Where the prompts come from and how they are put to the model."""

    path: str | None = None
    """A local .parquet or .jsonl file, or a folder of such files."""
    hub: str | None = None
    """The name of a data set for `datasets.load_dataset`, instead of `path`."""
    subset: str | None = None
    """The configuration of the hub's data set, such as `main`."""
    revision: str | None = None
    """The commit or tag of the hub's data set; name one, and the data cannot change under a sweep."""
    split: str = "train"
    """The split of the hub's data set."""
    columns: Columns = Columns()
    subsample: int | None = Field(None, ge=1)
    """Use this many rows, drawn without replacement; a larger subsample contains the smaller ones of its seed."""
    subsample_seed: NonNegativeInt = 0
    selection_share: float = Field(0.1, ge=0, le=1)
    """The share of prompts held out for choosing layers. A hash of the prompt's text decides, nothing else."""
    final_share: float = Field(0.1, ge=0, le=1)
    """The share of prompts held out for the final score; what is left over trains."""
    decontaminate_ngram: int | None = Field(13, ge=2)
    """Training prompts that share this many consecutive words with an evaluation prompt are dropped; null keeps all."""
    max_prompt_chars: int = Field(20_000, ge=1)
    """A longer question is a bad row."""
    max_row_bytes: int = Field(64 << 20, ge=1)
    """A longer line of a .jsonl file is a bad row."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Whether rows that are empty, too long, of a wrong type or without an answer stop the sweep."""
    prompt_format: Literal["chat", "plain"] = "chat"
    """`chat` renders messages with the model's chat template, `plain` sends the text alone."""
    system: str | None = None
    """A system message before each prompt that has none; in plain format a paragraph before it."""
    template: str = "{question}"
    """What the question is put into. Only `{question}` is replaced: other braces, as in `\\boxed{}`, stay."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (local files) or hub (the name of a data set)")
        if self.selection_share + self.final_share > 1:
            raise ValueError("selection_share + final_share is above 1; they are shares of the same prompts")
        if self.template.count("{question}") != 1:
            raise ValueError("template must contain {question} exactly once")
        return self

    @property
    def fetched(self) -> str | None:
        """What has to be fetched from elsewhere; None for local files."""
        return f"data set {self.hub} of the hub" if self.hub else None

    def files(self) -> list[Path]:
        """The local files, in order; empty for a data set of the hub.

        Raises:
            DataError: when there is no such file or folder, or none that can be read. Cheap: nothing is opened.
        """
        return [] if self.path is None else local_files(self.path)


@dataclass(frozen=True)
class DataReport:
    """What became of the rows, for the log and the sweep's record."""

    rows: int
    bad: int
    duplicates: int
    """Rows whose prompt another row has too; the first one counts."""
    contaminated: int
    """Training prompts dropped because they repeat evaluation prompts."""
    train: int
    selection: int
    final: int


class PromptData:
    """The prompts of one data set in three splits that never overlap.

    The result depends on the rows, not on their order: prompts are identified and ordered by a hash of their text.
    """

    def __init__(self, config: DataConfig, truth: Callable[[dict[str, Any]], Any]):
        """Reads all rows.

        Args:
            config: what to read.
            truth: the right answer of a raw row, as JSON-like data; a ValueError marks the row as bad.

        Raises:
            DataError: for a file that cannot be read, bad rows where they are refused, or no usable row at all.
        """
        self._config = config
        self._rows = self._duplicates = self._contaminated = 0
        self._bad: list[str] = []
        self._bad_count = 0
        prompts: Iterable[Prompt] = self._read(truth)
        if config.subsample is not None:
            # Keeps only the subsample in memory, however many rows there are.
            key = f"{config.subsample_seed}:".encode()
            prompts = heapq.nsmallest(config.subsample, prompts, key=lambda p: _digest(key + p.id.encode()))
        prompts = sorted(prompts, key=lambda p: p.id)
        self._report_bad_rows()
        if not prompts:
            raise DataError(f"data: {config.path or config.hub} has no usable row{self._first_bad_rows()}")
        self._splits: dict[Split, list[Prompt]] = {"train": [], "selection": [], "final": []}
        for prompt in prompts:
            self._splits[split_of(prompt.info["question"], config.selection_share, config.final_share)].append(prompt)
        self.decontaminate(self.questions("selection") + self.questions("final"))
        logger.info("data %s: %s", config.path or config.hub, self.report)

    @property
    def report(self) -> DataReport:
        """What became of the rows so far."""
        sizes = {name: len(prompts) for name, prompts in self._splits.items()}
        return DataReport(self._rows, self._bad_count, self._duplicates, self._contaminated, **sizes)

    def questions(self, split: Split) -> list[str]:
        """The texts of a split's questions, without template and system message."""
        return [prompt.info["question"] for prompt in self._splits[split]]

    def decontaminate(self, evaluation: Iterable[str]) -> int:
        """Drops the training prompts that repeat one of these evaluation questions; returns how many.

        The data's own selection and final splits are already taken care of; call this with those of other suites.
        """
        if self._config.decontaminate_ngram is None:
            return 0
        drop = contaminated(self.questions("train"), evaluation, self._config.decontaminate_ngram)
        self._splits["train"] = [p for i, p in enumerate(self._splits["train"]) if i not in drop]
        self._contaminated += len(drop)
        return len(drop)

    def fingerprint(self) -> str:
        """A hash of all that the model is shown and judged by; another one means that the data changed."""
        digest = hashlib.sha256()
        for split, prompts in self._splits.items():
            for p in prompts:
                digest.update(json.dumps([split, p.id, p.text, p.messages, p.truth], sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def prompts(self, split: Split, count: int, seed: int = 0) -> list[Prompt]:
        """`count` prompts; see `layersweep.rollout.tasks.base.Task.prompts`.

        Training batches are consecutive stretches of an endless stream of shuffled passes over the data: batch
        `seed` begins at position `seed * count`. So runs of consecutive seeds see each prompt once per pass.

        Raises:
            DataError: when the split has fewer than `count` prompts.
        """
        pool = self._splits[split]
        if count > len(pool):
            raise DataError(
                f"data: {self._config.path or self._config.hub} has {len(pool)} {split} prompts, {count} were asked "
                "for: ask for fewer, or change selection_share and final_share"
            )
        if split != "train":
            return [pool[i] for i in _shuffled(len(pool), seed)[:count]]
        positions = range(seed * count, (seed + 1) * count)
        return [pool[_shuffled(len(pool), at // len(pool))[at % len(pool)]] for at in positions]

    def _read(self, truth: Callable[[dict[str, Any]], Any]) -> Iterator[Prompt]:
        """Every good row as a prompt, once; bad rows and duplicates are counted."""
        seen: set[str] = set()
        for where, raw in self._raw_rows():
            self._rows += 1
            try:
                prompt = _prompt(raw, truth, self._config)
            except (ValueError, RecursionError) as error:
                self._bad_count += 1
                if len(self._bad) < SHOWN_BAD_ROWS:
                    self._bad.append(f"{where}: {error}")
                continue
            if prompt.id in seen:
                self._duplicates += 1
                continue
            seen.add(prompt.id)
            yield prompt

    def _raw_rows(self) -> Iterator[tuple[str, Any]]:
        c = self._config
        return hub_rows(c.hub, c.subset, c.split, c.revision) if c.hub else local_rows(c.files(), c.max_row_bytes)

    def _first_bad_rows(self) -> str:
        if not self._bad:
            return ""
        more = self._bad_count - len(self._bad)
        return ": " + "; ".join(self._bad) + (f"; and {more} more" if more else "")

    def _report_bad_rows(self) -> None:
        if not self._bad_count:
            return
        message = f"data: {self._bad_count} of {self._rows} rows are bad{self._first_bad_rows()}"
        if self._config.bad_rows == "refuse":
            raise DataError(f"{message}. Mend them, or leave them out with data.bad_rows: skip")
        logger.warning("%s. They are left out", message)


def split_of(text: str, selection_share: float, final_share: float) -> Split:
    """The split that a prompt belongs to, by a hash of its text: equal texts never land in two splits."""
    position = int.from_bytes(_digest(text.encode())) / 2**128
    if position < selection_share:
        return "selection"
    return "final" if position < selection_share + final_share else "train"


def ground_truth(raw: dict[str, Any], columns: Columns) -> Any:
    """The answer of a raw row as it stands: `reward_model.ground_truth`, else the answer column.

    Raises:
        ValueError: when there is none.
    """
    model = raw.get("reward_model")
    value = model.get("ground_truth") if isinstance(model, dict) else raw.get(columns.answer)
    if value is None:
        raise ValueError(f"no answer, neither reward_model.ground_truth nor a column {columns.answer!r}")
    return value


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def _prompt(raw: Any, truth: Callable[[dict[str, Any]], Any], config: DataConfig) -> Prompt:
    """A raw row as a prompt; a ValueError says what is wrong with it."""
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict):
        raise ValueError(f"not an object with columns but {type(raw).__name__}")
    messages = messages_of(raw, config.columns.prompt, config.columns.question)
    question = "\n\n".join(message["content"] for message in messages)
    if len(question) > config.max_prompt_chars:
        raise ValueError(
            f"the prompt has {len(question)} characters, data.max_prompt_chars is {config.max_prompt_chars}"
        )
    try:
        identity = _digest(question.encode()).hex()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is no valid Unicode text ({error.reason})") from error
    answer = truth(raw)
    info = {"question": question} | {k: raw[k] for k in ("data_source", "ability") if isinstance(raw.get(k), str)}
    if config.prompt_format == "plain":
        text = config.template.replace("{question}", question)
        text = text if config.system is None else f"{config.system}\n\n{text}"
        return Prompt(identity, text=text, truth=answer, info=info)
    last = {"role": "user", "content": config.template.replace("{question}", messages[-1]["content"])}
    messages = [*messages[:-1], last]
    if config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    return Prompt(identity, messages=tuple(messages), truth=answer, info=info)
