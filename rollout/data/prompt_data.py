"""Prompt data from files or a hub: read, checked row by row, split, and served as prompts.

Two layouts are understood, row by row: the de facto one of RL post-training (`data_source, prompt[{role, content}],
ability, reward_model{style, ground_truth}, extra_info`) and plain question and answer columns. What the right answer
of a row is, the task says through a `truth` function; everything else is the same for mathematics and code.
"""

import hashlib
import heapq
import itertools
import json
import logging
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from layersweep.policies.wording import counted
from layersweep.rollout.types import Prompt, Split

from .data_config import DataConfig
from .data_files import DataError
from .decontamination import contaminated
from .row_prompts import ID_COLUMNS, digest, digest_of_answer, id_of_row, prompt_of_row
from .row_readers import file_rows, hub_rows, names_of, value_at

logger = logging.getLogger(__name__)

_UNUSABLE = (ValueError, ArithmeticError, RecursionError)
"""Raised of a bad row; ArithmeticError by numbers of any size, RecursionError by JSON that is nested too deep."""
SHOWN_BAD_ROWS = 5
"""Bad rows that a refusal names; `PromptData.bad_rows` has them all."""


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
        return f"{counted(self.rows, 'rows')}{f' ({left_out} dropped)' if left_out else ''}: {kept}"


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
        self._config, self._truth = config, truth
        self._columns = None if columns is None else config.columns.all.union(columns)
        self._contaminated = self._overlong = 0
        self._conflicting: set[str] = set()
        prompts = self._drawn()
        if self._conflicting:
            prompts = self._drawn()  # once more, without them
        prompts.sort(key=lambda prompt: prompt.id)
        self._refuse_bad_rows()
        if self._unseen:
            field, name = next(iter(self._unseen.items()))
            raise DataError(
                f"data.columns.{field}: no row of {self._name} has anything in {name!r}; there are: {self._there}"
            )
        if not prompts:
            raise DataError(f"data: {self._name} has {self._why_none()}")
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
        """Return all prompts of a split, ordered by identity."""
        return list(self._splits[split])

    def row_of(self, prompt: Prompt) -> str:
        """Name the row of a prompt, such as `a.jsonl row 17`."""
        return self._row_names[prompt.id]

    def bad_rows(self) -> Iterator[str]:
        """Read all rows once more; name each bad one by its place, its own id where it has one, and the reason."""
        columns = None if self._columns is None else self._columns.union(ID_COLUMNS)
        for where, raw in self._raw_rows(columns):
            try:
                self._prompt_and_answer(raw)
            except _UNUSABLE as error:
                yield f"{where}{id_of_row(raw)}: {error}"

    def questions(self, split: Split) -> list[str]:
        """Return the texts of a split's questions, without template and system message."""
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
        """Return a hash of all that the model is shown and judged by; another one means that the data changed."""
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
                f"data: {self._name} has {counted(len(pool), f'{split} prompts')}, {count} were asked for "
                f"({self.report}): ask for fewer, or change selection_share and final_share"
                + (cause if split == "train" and self._contaminated else "")
            )
        if split != "train":
            return [pool[i] for i in _shuffled(len(pool), seed)[:count]]
        positions = range(seed * count, (seed + 1) * count)
        return [pool[_shuffled(len(pool), at // len(pool))[at % len(pool)]] for at in positions]

    @property
    def _name(self) -> str:
        return str(self._config.path or self._config.hub)

    def _drawn(self) -> list[Prompt]:
        """Return all good prompts, or the subsample: then no more than that is in memory, however many rows there
        are."""
        config, prompts = self._config, self._read()
        if config.subsample is None:
            return list(prompts)
        key = f"{config.subsample_seed}:".encode()
        return heapq.nsmallest(config.subsample, prompts, key=lambda p: digest(key + p.id.encode()))

    def _read(self) -> Iterator[Prompt]:
        """Every good row as a prompt, once, without questions that are known to have different answers.

        Bad rows and duplicates are counted, and different answers are found; a question's first row has been given out
        by then.
        """
        self._rows = self._duplicates = self._bad_count = self._conflicting_rows = 0
        self._bad: list[tuple[str, str]] = []
        self._seen: dict[str, tuple[bytes, str]] = {}
        self._unseen: dict[str, str] = self._config.columns.model_dump(exclude_defaults=True)
        self._there = "none"
        for where, raw in self._raw_rows(self._columns):
            self._rows += 1
            self._note_columns(raw)
            try:
                prompt, answer = self._prompt_and_answer(raw)
            except _UNUSABLE as error:
                self._bad_count += 1
                if len(self._bad) < SHOWN_BAD_ROWS:
                    self._bad.append((where, str(error)))
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

    def _note_columns(self, raw: Any) -> None:
        """Note that a row has columns which the section names: one that no row has is misspelled."""
        if self._unseen and isinstance(raw, dict):
            self._there = names_of(raw)
            self._unseen = {field: name for field, name in self._unseen.items() if value_at(raw, name) is None}

    def _prompt_and_answer(self, raw: Any) -> tuple[Prompt, bytes]:
        """Return a good row as a prompt, and a hash of its answer; a bad one raises one of _UNUSABLE."""
        prompt = prompt_of_row(raw, self._truth, self._config, keep_columns=self._columns is None)
        return prompt, digest_of_answer(prompt.truth)

    def _raw_rows(self, columns: Collection[str] | None) -> Iterator[tuple[str, Any]]:
        c = self._config
        if c.hub:
            return hub_rows(c.hub, c.subset, c.split, c.revision, columns)
        return file_rows(c.files(), columns, c.max_row_bytes)

    def _first_bad_rows(self) -> str:
        if not self._bad:
            return ""
        more = self._bad_count - len(self._bad)
        # A reason that many rows have, such as a missing column, is said once.
        groups = [
            (reason, [where for where, _ in rows]) for reason, rows in itertools.groupby(self._bad, lambda b: b[1])
        ]
        named = "; ".join(f"{', '.join(rows)}: {reason}" for reason, rows in groups)
        return f": {named}" + (f"; and {more} more" if more else "")

    def _why_none(self) -> str:
        """Say why there is no prompt."""
        if not self._rows:
            return "no rows"
        if self._conflicting_rows:
            return f"no usable row: {counted(self._conflicting_rows, 'rows')} answer the same questions differently"
        return f"no usable row{self._first_bad_rows()}"

    @property
    def notice(self) -> str | None:
        """Rows that were left out as bad, for whoever is to be told; None where there are none."""
        return f"{self._bad_message()}. Bad rows are left out" if self._bad_count else None

    def _bad_message(self) -> str:
        verb = "is" if self._bad_count == 1 else "are"
        name = f" of {self._name}" if self._config.bad_rows == "skip" else ""
        return f"data: {self._bad_count} of {counted(self._rows, 'rows')}{name} {verb} bad{self._first_bad_rows()}"

    def _refuse_bad_rows(self) -> None:
        if self._bad_count and self._config.bad_rows == "refuse":
            listing = "" if self._bad_count == len(self._bad) else "; `layersweep data` lists all of them"
            raise DataError(f"{self._bad_message()}. Fix them, or leave them out with data.bad_rows: skip{listing}")


def split_of(text: str, selection_share: float, final_share: float) -> Split:
    """Return the split that a prompt belongs to, by a hash of its text: equal texts never land in two splits."""
    position = int.from_bytes(digest(text.encode())) / 2**128
    if position < selection_share:
        return "selection"
    return "final" if position < selection_share + final_share else "train"


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


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
