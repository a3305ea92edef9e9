"""The section of a spec that names a data set: its place, its splits, and the form in which the model gets it."""

from typing import Literal

from pydantic import Field, model_validator

from layersweep.policies.strict import Location, StrictModel

from .data_files import DataFile, data_files
from .locations import local_path, refuse_unknown_protocol


class Columns(StrictModel):
    """The names of the columns; what lies within one is named by its path, such as `extra_info.answer`. A row that has
    the prompt column is read in the de facto layout."""

    prompt: str = Field("prompt", min_length=1)
    """Messages (a list of `{role, content}`) or plain text; the answer is then `reward_model.ground_truth`, or
    the answer column where there is no `reward_model`."""
    question: str | None = Field(None, min_length=1)
    """The question of rows that have no prompt column; null is the first of `question`, `problem`, `input` and `query`
    that a row has."""
    context: str | None = Field(None, min_length=1)
    """Text that belongs before the question; null is `body` or `context` where a row has one."""
    answer: str | None = Field(None, min_length=1)
    """The answer; null is `reward_model.ground_truth`, or of rows that have no `reward_model` the first of `answer`,
    `final_answer`, `target`, `solution` and `ground_truth` that there is."""

    @model_validator(mode="after")
    def _answers_are_no_questions(self) -> "Columns":
        if self.answer is not None and self.answer in (self.prompt, self.question):
            raise ValueError(f"answer: {self.answer} is the column of the question too; name another")
        return self

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
        return (
            (self.answer,)
            if self.answer
            else _either_case("answer", "final_answer", "target", "solution", "ground_truth")
        )

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
        """Return the files of a path, in order; empty for a data set of the hub.

        Raises:
            DataError: there are none that can be read, or it is not clear which are meant. Cheap: nothing is opened.
        """
        return [] if self.path is None else data_files(self.path, self.split, self.subset)
