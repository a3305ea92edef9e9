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
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, model_validator

from layersweep.policies.strict import Location, StrictModel
from layersweep.rollout.types import Prompt, Split

from .data_files import DataError, DataFile, data_files
from .decontamination import contaminated
from .locations import local_path, refuse_unknown_protocol
from .row_readers import file_rows, hub_rows, messages_of, value_at

logger = logging.getLogger(__name__)

SHOWN_BAD_ROWS = 5
REFERENCE_SOLUTION = "reference_solution"
"""Name in a prompt's `info` of a program that is right, where a row brings one."""
_KEPT = ("data_source", "ability", REFERENCE_SOLUTION)


class Columns(StrictModel):
    """The names of the columns; what lies within one is named by its path, such as `extra_info.answer`. A row that has
    the prompt column is read in the de facto layout."""

    prompt: str = "prompt"
    """Messages (a list of `{role, content}`) or plain text; the answer is then `reward_model.ground_truth`, or
    the answer column where there is no `reward_model`."""
    question: str | None = None
    """The question of rows that have no prompt column; null is the first of `question`, `problem`, `input` and `query`
    that a row has."""
    context: str | None = None
    """Text that belongs before the question; null is `body` or `context` where a row has one."""
    answer: str | None = None
    """The answer; null is `reward_model.ground_truth`, or of rows that have no `reward_model` the first of `answer`,
    `final_answer`, `target` and `solution` that there is."""

    @property
    def questions(self) -> tuple[str, ...]:
        """Columns to look for the question in, in order."""
        return (self.question,) if self.question else _either_case("question", "problem", "input", "query")

    @property
    def contexts(self) -> tuple[str, ...]:
        """Columns to look for the question's context in, in order."""
        return (self.context,) if self.context else _either_case("body", "context")

    @property
    def answers(self) -> tuple[str, ...]:
        """Columns to look for the answer in, in order."""
        return (self.answer,) if self.answer else _either_case("answer", "final_answer", "target", "solution")

    @property
    def all(self) -> frozenset[str]:
        """Every column that is read of a row."""
        fixed = (self.prompt, "reward_model", "data_source", "ability")
        return frozenset((*fixed, *self.questions, *self.contexts, *self.answers))


def _either_case(*names: str) -> tuple[str, ...]:
    return tuple(spelling for name in names for spelling in (name, name.capitalize()))


class DataConfig(StrictModel):
    """Source of the prompts, and the form in which the model gets them."""

    path: Location | None = None
    """A .parquet, .jsonl, .json (a list of rows), .csv or .tsv file (text also as .gz, .bz2, .zst), a folder of such
    files, or one that `save_to_disk` of `datasets` wrote: a path, or a URI that fsspec understands (`s3://...`)."""
    hub: Location | None = None
    """The name of a data set for `datasets.load_dataset`, instead of `path`."""
    subset: Location | None = None
    """The configuration of the hub's data set, such as `main`; of a `path` the inner folder, if several hold data."""
    revision: Location | None = None
    """The commit or tag of the hub's data set; name one, and the data cannot change under a sweep."""
    split: Location = "train"
    """The split of the hub's data set, or of a folder whose files name their splits (`train-00000.parquet`,
    `data/test/a.jsonl`)."""
    columns: Columns = Columns()
    subsample: int | None = Field(None, ge=1)
    """Use this many rows, drawn without replacement; a larger subsample contains the smaller ones of its seed."""
    subsample_seed: int = Field(0, ge=0, lt=2**32)
    selection_share: float = Field(0.1, ge=0, le=1)
    """Share of prompts held out for choosing layers. A hash of the prompt's text decides, nothing else."""
    final_share: float = Field(0.1, ge=0, le=1)
    """Share of prompts held out for the final score; the rest trains."""
    decontaminate_ngram: int | None = Field(13, ge=2, le=1000)
    """Training prompts that share this many consecutive words with an evaluation prompt are dropped; words that many
    prompts share, as an instruction, do not count. null keeps all."""
    max_prompt_chars: int = Field(20_000, ge=1)
    """A longer question is a bad row."""
    max_row_bytes: int = Field(64 << 20, ge=1, le=1 << 34)
    """A longer line of a .jsonl file is a bad row, as is a longer cell of a .csv file."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """Whether rows that are empty, too long, of a wrong type or without an answer stop the sweep."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """Whether prompts that leave no room for a response in the model's window, counted in tokens, stop the sweep."""
    prompt_format: Literal["chat", "plain"] = "chat"
    """`chat` renders messages with the model's chat template, `plain` sends the text alone."""
    system: str | None = None
    """A system message before each prompt that has none; in plain format a paragraph before it."""
    template: str = "{question}"
    """Text around the question. Only `{question}` is replaced: other braces, as in `\\boxed{}`, stay."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (local files) or hub (the name of a data set)")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision: a path has no revisions, only a data set of the hub has; leave it out")
        if self.path is not None:
            try:
                refuse_unknown_protocol(self.path)
            except ValueError as error:
                raise ValueError(f"path: {error}") from error
        if self.selection_share + self.final_share > 1:
            raise ValueError("selection_share + final_share is above 1; they are shares of the same prompts")
        if self.template.count("{question}") != 1:
            raise ValueError("template must contain {question} exactly once")
        return self

    @property
    def fetched(self) -> str | None:
        """Name what has to be fetched from elsewhere; None for local files."""
        if self.hub:
            return f"data set {self.hub} of the hub"
        return f"data set {self.path}" if self.path and local_path(self.path) is None else None

    def files(self) -> list[DataFile]:
        """The files of a path, in order; empty for a data set of the hub.

        Raises:
            DataError: there are none that can be read, or it is not clear which are meant. Cheap: nothing is opened.
        """
        return [] if self.path is None else data_files(self.path, self.split, self.subset)


@dataclass(frozen=True)
class DataReport:
    """Counts of rows and of what became of them. Rows that a subsample leaves out are in `rows` alone."""

    rows: int
    bad: int
    duplicates: int
    """Rows whose question and answer an earlier row has too, up to the space around them."""
    conflicting: int
    """Rows whose question another row answers differently: all of them are dropped."""
    contaminated: int
    """Training prompts dropped because they repeat evaluation prompts."""
    overlong: int
    """Prompts dropped because they leave no room for a response in the model's window."""
    train: int
    selection: int
    final: int

    def __str__(self) -> str:
        dropped = {"bad": self.bad, "duplicate": self.duplicates, "contradicting": self.conflicting,
                   "contaminated": self.contaminated, "over-long": self.overlong}  # fmt: skip
        left_out = ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count)
        kept = f"{self.train:,} train, {self.selection:,} selection, {self.final:,} final"
        return f"{self.rows:,} rows{f' ({left_out} dropped)' if left_out else ''}: {kept}"


class PromptData:
    """The prompts of one data set in three splits that never overlap.

    The result depends on the rows, not on their order: prompts are identified and ordered by a hash of their text.
    """

    def __init__(
        self, config: DataConfig, truth: Callable[[dict[str, Any]], Any], columns: Collection[str] | None = ()
    ):
        """Read all rows.

        Args:
            config: what to read.
            truth: the right answer of a raw row, as JSON-like data; a ValueError marks the row as bad.
            columns: which `truth` reads beside `config.columns`; None keeps all of a row in `Prompt.info["columns"]`.

        Raises:
            DataError: for a file that cannot be read, bad rows where they are refused, or no usable row at all.
        """
        self._config = config
        self._columns = None if columns is None else config.columns.all.union(columns)
        self._contaminated = self._overlong = 0
        self._conflicting: set[str] = set()
        prompts = self._drawn(truth)
        if self._conflicting:
            prompts = self._drawn(truth)  # once more, without them
        prompts.sort(key=lambda prompt: prompt.id)
        self._report_bad_rows()
        if not prompts:
            raise DataError(f"data: {self._name} has no usable row{self._first_bad_rows()}")
        self._row_names = {prompt.id: self._seen[prompt.id][1] for prompt in prompts}
        del self._seen
        self._splits: dict[Split, list[Prompt]] = {"train": [], "selection": [], "final": []}
        for prompt in prompts:
            self._splits[split_of(prompt.info["question"], config.selection_share, config.final_share)].append(prompt)
        self.decontaminate(self.questions("selection") + self.questions("final"))
        logger.info("data %s: %s", self._name, self.report)

    @property
    def report(self) -> DataReport:
        """Count what became of the rows so far."""
        sizes = {name: len(prompts) for name, prompts in self._splits.items()}
        return DataReport(
            self._rows, self._bad_count, self._duplicates, self._conflicting_rows, self._contaminated, self._overlong,
            **sizes,
        )  # fmt: skip

    @property
    def drops_overlong(self) -> bool:
        """Whether prompts that are too long for the model are dropped instead of refused."""
        return self._config.overlong_prompts == "drop"

    def all_prompts(self, split: Split) -> list[Prompt]:
        """All prompts of a split, ordered by identity."""
        return list(self._splits[split])

    def row_of(self, prompt: Prompt) -> str:
        """Name the row of a prompt, such as `a.jsonl row 17`."""
        return self._row_names[prompt.id]

    def questions(self, split: Split) -> list[str]:
        """The texts of a split's questions, without template and system message."""
        return [prompt.info["question"] for prompt in self._splits[split]]

    def decontaminate(self, evaluation: Iterable[str]) -> int:
        """Drop the training prompts that repeat one of these evaluation questions; return how many.

        The data's own selection and final splits are already taken care of; call this with those of other suites.
        """
        if self._config.decontaminate_ngram is None:
            return 0
        drop = contaminated(self.questions("train"), evaluation, self._config.decontaminate_ngram)
        self._splits["train"] = [p for i, p in enumerate(self._splits["train"]) if i not in drop]
        self._contaminated += len(drop)
        return len(drop)

    def drop_overlong(self, split: Split, identities: Collection[str]) -> None:
        """Drop prompts of a split that are too long for the model."""
        kept = [prompt for prompt in self._splits[split] if prompt.id not in identities]
        self._overlong += len(self._splits[split]) - len(kept)
        self._splits[split] = kept

    def fingerprint(self) -> str:
        """A hash of all that the model is shown and judged by; another one means that the data changed."""
        digest = hashlib.sha256()
        for split, prompts in self._splits.items():
            for p in prompts:
                shown = [split, p.id, p.text, p.messages, p.truth]
                judged_by = [p.info["columns"]] if self._columns is None else []
                digest.update(json.dumps(shown + judged_by, sort_keys=True).encode() + b"\n")
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
            cause = "; of the training prompts, decontaminate_ngram dropped those that repeat evaluation prompts"
            raise DataError(
                f"data: {self._name} has {len(pool)} {split} prompts, {count} were asked for ({self.report}): ask for "
                "fewer, or change selection_share and final_share"
                + (cause if split == "train" and self._contaminated else "")
            )
        if split != "train":
            return [pool[i] for i in _shuffled(len(pool), seed)[:count]]
        positions = range(seed * count, (seed + 1) * count)
        return [pool[_shuffled(len(pool), at // len(pool))[at % len(pool)]] for at in positions]

    @property
    def _name(self) -> str:
        return str(self._config.path or self._config.hub)

    def _drawn(self, truth: Callable[[dict[str, Any]], Any]) -> list[Prompt]:
        """All good prompts, or the subsample: then no more than that is in memory, however many rows there are."""
        config, prompts = self._config, self._read(truth)
        if config.subsample is None:
            return list(prompts)
        key = f"{config.subsample_seed}:".encode()
        return heapq.nsmallest(config.subsample, prompts, key=lambda p: _digest(key + p.id.encode()))

    def _read(self, truth: Callable[[dict[str, Any]], Any]) -> Iterator[Prompt]:
        """Every good row as a prompt, once, without questions that are known to have different answers.

        Bad rows and duplicates are counted, and different answers are found; a question's first row has been given out
        by then.
        """
        self._rows = self._duplicates = self._bad_count = self._conflicting_rows = 0
        self._bad: list[str] = []
        self._seen: dict[str, tuple[bytes, str]] = {}
        for where, raw in self._raw_rows():
            self._rows += 1
            try:
                prompt = _prompt(raw, truth, self._config, keep_columns=self._columns is None)
                answer = _digest_of_answer(prompt.truth)
            except (ValueError, RecursionError) as error:
                self._bad_count += 1
                if len(self._bad) < SHOWN_BAD_ROWS:
                    self._bad.append(f"{where}: {error}")
                continue
            if prompt.id in self._conflicting:
                self._conflicting_rows += 1
            elif prompt.id not in self._seen:
                self._seen[prompt.id] = (answer, where)
                yield prompt
            elif self._seen[prompt.id][0] == answer:
                self._duplicates += 1
            else:
                self._conflicting.add(prompt.id)

    def _raw_rows(self) -> Iterator[tuple[str, Any]]:
        c = self._config
        if c.hub:
            return hub_rows(c.hub, c.subset, c.split, c.revision, self._columns)
        return file_rows(c.files(), self._columns, c.max_row_bytes)

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
            raise DataError(f"{message}. Fix them, or leave them out with data.bad_rows: skip")
        logger.warning("%s. They are left out", message)


def split_of(text: str, selection_share: float, final_share: float) -> Split:
    """The split that a prompt belongs to, by a hash of its text: equal texts never land in two splits."""
    position = int.from_bytes(_digest(text.encode())) / 2**128
    if position < selection_share:
        return "selection"
    return "final" if position < selection_share + final_share else "train"


def ground_truth(raw: dict[str, Any], columns: Columns, required: bool = True) -> Any:
    """The answer of a raw row as it stands: in the column that `columns.answer` names, in `reward_model.ground_truth`,
    or in the first answer column that it has; None where it is not required and there is none.

    Raises:
        ValueError: it is required, and there is none.
    """
    model = raw.get("reward_model")
    named = None if columns.answer is None else value_at(raw, columns.answer)
    if named is not None:
        value = named
    elif isinstance(model, dict):
        value = model.get("ground_truth")
    else:
        value = next((raw[name] for name in columns.answers if raw.get(name) is not None), None)
    if value is None and required:
        raise ValueError(f"no answer, neither reward_model.ground_truth nor a column {columns.answers[0]!r}")
    return value


def json_like(value: Any) -> Any:
    """The value with whatever JSON does not have, such as dates, as text."""
    return json.loads(json.dumps(value, default=str))


def decontaminate_across(task: Any, suites: Iterable[Any]) -> int:
    """Drop training questions that an evaluation suite over other data asks too; return how many.

    Args:
        task: what is trained on.
        suites: the tasks of the suites.
    """
    others = {id(suite): suite.data for suite in suites if suite is not task and hasattr(suite, "data")}
    if not hasattr(task, "data") or not others:
        return 0
    return task.data.decontaminate(
        [text for data in others.values() for split in ("selection", "final") for text in data.questions(split)]
    )


def _digest_of_answer(truth: Any) -> bytes:
    try:
        return _digest(json.dumps(truth, sort_keys=True, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"the answer is no valid Unicode text ({error.reason})") from error


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def _prompt(raw: Any, truth: Callable[[dict[str, Any]], Any], config: DataConfig, keep_columns: bool) -> Prompt:
    """A raw row as a prompt; a ValueError says what is wrong with it."""
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict):
        raise ValueError(f"not an object with columns but {type(raw).__name__}")
    columns = config.columns
    messages = messages_of(raw, columns.prompt, columns.questions, columns.contexts)
    whole = "\n\n".join(message["content"] for message in messages)
    # Space around a message reaches the model as it is, but makes no other question of it.
    question = "\n\n".join(message["content"].strip() for message in messages)
    if len(question) > config.max_prompt_chars:
        raise ValueError(
            f"the prompt has {len(question)} characters, data.max_prompt_chars is {config.max_prompt_chars}"
        )
    try:
        identity = _digest(question.encode()).hex()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is no valid Unicode text ({error.reason})") from error
    answer = truth(raw)
    info = {"question": question} | {k: raw[k] for k in _KEPT if isinstance(raw.get(k), str)}
    if keep_columns:
        others = {name: value for name, value in raw.items() if name != columns.prompt}
        info["columns"] = json_like(others)
    if config.prompt_format == "plain":
        text = config.template.replace("{question}", whole)
        text = text if config.system is None else f"{config.system}\n\n{text}"
        return Prompt(identity, text=text, truth=answer, info=info)
    last = {"role": "user", "content": config.template.replace("{question}", messages[-1]["content"])}
    messages = [*messages[:-1], last]
    if config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    return Prompt(identity, messages=tuple(messages), truth=answer, info=info)
