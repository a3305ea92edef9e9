"""Raw rows from files or a hub, each with its place, and the messages they hold."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from .data_files import DataError, DataFile


def file_rows(files: Sequence[DataFile], columns: Collection[str], max_row_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each row's place and its raw value, or the ValueError that says why it could not be read.

    Args:
        files: to read, in order.
        columns: what is needed of a row. Other columns of a parquet file are not read: what they hold cannot matter.
        max_row_bytes: bound on a line of a .jsonl file.

    Raises:
        DataError: a file cannot be read to its end.
    """
    for file in files:
        prefix = "" if len(files) == 1 else f"{file.name} "
        for number, row in _READERS[file.format or ""](file, columns, max_row_bytes):
            yield f"{prefix}row {number}", row


def hub_rows(
    name: str, subset: str | None, split: str, revision: str | None, columns: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """The rows of a data set of the hub, loaded with `datasets`.

    Raises:
        DataError: when it cannot be loaded.
    """
    try:
        import datasets

        data = datasets.load_dataset(name, subset, split=split, revision=revision)
    except ImportError as error:
        raise DataError("data.hub needs the package datasets: install layersweep[math]") from error
    except Exception as error:  # the loader raises anything, from network errors to wrong metadata
        raise DataError(f"data.hub: {name} (split {split}) cannot be loaded: {error}") from error
    needed = _needed(data.column_names, columns, f"data.hub: {name}")
    yield from ((f"row {number}", row) for number, row in enumerate(data.select_columns(needed), 1))


def messages_of(raw: dict[str, Any], prompt: str, question: Sequence[str], context: Sequence[str]) -> list[dict]:
    """The messages in column `prompt`, else in the first column of `question` that the row has, as they stand.

    Args:
        raw: the row.
        prompt: column of a list of messages, or of a text.
        question: columns of a text (or of messages), the first one counts.
        context: columns of a text that comes before a question's, on a line of its own; the first one counts.

    Raises:
        ValueError: says what is wrong with them.
    """
    name = prompt if raw.get(prompt) is not None else next((n for n in question if n in raw), None)
    if name is None:
        there = ", ".join(map(str, list(raw)[:12])) or "none"
        raise ValueError(f"no column {prompt!r} or {question[0]!r} (see data.columns); there are: {there}")
    value = raw[name]
    if isinstance(value, str):
        before = next((raw[n] for n in context if isinstance(raw.get(n), str) and raw[n].strip()), None)
        if before is not None and name != prompt and value.strip():
            value = f"{before.strip()}\n{value}"
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"{name} is neither text nor a list of messages but {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} is empty")
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name} has a message without a role of system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"{name} has a message whose content is not text")
        if not message["content"].strip():
            raise ValueError(f"{name} is empty")
    if value[-1]["role"] != "user":
        raise ValueError(f"{name} does not end with a message of the user")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _needed(there: Sequence[str], columns: Collection[str], what: str) -> list[str]:
    needed = [name for name in there if name in columns]
    if not needed:
        raise DataError(
            f"{what} has none of the columns that hold a question or an answer (see data.columns); it has: "
            f"{', '.join(map(str, there[:12])) or 'none'}"
        )
    return needed


def _jsonl_rows(file: DataFile, _: Collection[str], max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Lines by number, blank ones left out; never more than `max_bytes` of the file in memory."""
    number = 0
    try:
        with file.open() as stream:
            while line := stream.readline(max_bytes + 1):
                number += 1
                if len(line) > max_bytes:
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(max_bytes + 1)
                    yield number, ValueError(f"longer than data.max_row_bytes, {max_bytes}")
                elif line.strip():
                    yield number, _parsed(line)
    except OSError as error:
        raise DataError(f"data.path: {file.path} cannot be read after row {number}: {error}") from error


def _parsed(line: bytes) -> Any:
    """A line's value. Bytes that are no UTF-8 become lone surrogates, which matter only where they are used."""
    try:
        return json.loads(line.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return ValueError(f"no JSON ({error})")


def _parquet_rows(file: DataFile, columns: Collection[str], _: int) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with file.open() as stream, contextlib.closing(pyarrow.parquet.ParquetFile(stream)) as table:
            needed = _needed(table.schema_arrow.names, columns, f"data.path: {file.path}")
            for batch in table.iter_batches(batch_size=256, columns=needed):
                for row in _batch_rows(batch):
                    number += 1
                    yield number, row
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"data.path: {file.path} cannot be read as parquet after row {number}: {error}") from error


def _batch_rows(batch: Any) -> list[Any]:
    """The rows of a record batch; of one that Python cannot hold (no UTF-8, a date too far off), the rows it can."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return [_batch_row(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _batch_row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return ValueError(f"a value that cannot be read ({error})")


_READERS: dict[str, Callable[[DataFile, Collection[str], int], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
