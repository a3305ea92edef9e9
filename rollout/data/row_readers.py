"""Raw rows from files or a hub, each with its place, and the messages they hold."""

import contextlib
import csv
import io
import json
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from layersweep.policies.wording import counted

from .data_files import DataError, DataFile, DataUnavailable, read_error
from .locations import PERMANENT, is_local

MOST_JSON_BYTES = 1 << 30
"""Size of a .json file, which is read whole, at most."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Row(dict[str, Any]):
    """The columns of a row that are read, of a file that has others too."""

    names: Sequence[str] = ()
    """Names of all its columns."""

    @classmethod
    def of(cls, row: Any, names: Sequence[str]) -> Any:
        """Return a row of a file with these columns; what is no row as it is."""
        if not isinstance(row, dict):
            return row
        found = cls(row)
        found.names = names
        return found


def file_rows(
    files: Sequence[DataFile], columns: Collection[str] | None, max_row_bytes: int
) -> Iterator[tuple[str, Any]]:
    """Each row's place and its raw value, or the ValueError that says why it could not be read.

    Args:
        files: to read, in order.
        columns: what is needed of a row, None for all. Other columns of a parquet file are not read: what they hold
            cannot matter.
        max_row_bytes: bound on a line of a .jsonl file, and on a cell of a .csv file.

    Raises:
        DataError: a file cannot be read to its end.
        DataUnavailable: a store did not give all of it.
    """
    for file in files:
        prefix = "" if len(files) == 1 else f"{file.name} "
        try:
            for number, row in _READERS[file.format or ""](file, columns, max_row_bytes):
                yield f"{prefix}row {number}", row
        except DataError:
            raise
        except Exception as error:  # stores raise classes of their own
            if is_local(file.filesystem):
                raise
            raise read_error(file.filesystem, f"data.path: {file.path} cannot be read", error) from error


def hub_rows(
    name: str, subset: str | None, split: str, revision: str | None, columns: Collection[str] | None
) -> Iterator[tuple[str, Any]]:
    """The rows of a data set of the hub, loaded with `datasets`.

    Raises:
        DataError: when it cannot be loaded.
        DataUnavailable: the hub did not answer.
    """
    try:
        import datasets

        data = datasets.load_dataset(name, subset, split=split, revision=revision)
    except ImportError as error:
        raise DataError("data.hub needs the package datasets: install layersweep[math]") from error
    except Exception as error:  # the loader raises anything, from network errors to wrong metadata
        passing = isinstance(error, OSError) and not isinstance(error, PERMANENT)
        kind = DataUnavailable if passing else DataError
        raise kind(f"data.hub: {name} (split {split}) cannot be loaded: {error}") from error
    needed = _needed(data.column_names, columns, f"data.hub: {name}")
    yield from ((f"row {number}", row) for number, row in enumerate(data.select_columns(needed), 1))


def messages_of(raw: dict[str, Any], prompt: str, question: Sequence[str], context: Sequence[str]) -> list[dict]:
    """Return the messages in column `prompt`, else in the first column of `question` that the row has, as they stand.

    Args:
        raw: the row.
        prompt: column of a list of messages, or of a text.
        question: columns of a text (or of messages), the first one counts.
        context: columns of a text that comes before a question's, on a line of its own; the first one counts.

    Raises:
        ValueError: says what is wrong with them.
    """
    found = value_at(raw, prompt)
    name = prompt if found is not None else next((n for n in question if n in raw or value_at(raw, n)), None)
    if name is None:
        raise ValueError(f"no column {prompt!r} or {question[0]!r} (see data.columns); there are: {names_of(raw)}")
    value = _unpacked(value_at(raw, name))
    if isinstance(value, str):
        before = next((text for n in context if isinstance(text := value_at(raw, n), str) and text.strip()), None)
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
        if is_blank(message["content"]):
            raise ValueError(f"{name} is empty")
    if value[-1]["role"] != "user":
        raise ValueError(f"{name} does not end with a message of the user")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _unpacked(value: Any) -> Any:
    """Return messages that were stored as JSON text as messages; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(value)
            return (
                read if all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in read) else value
            )
    return value


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: blanks, and characters without width."""
    return all(character.isspace() or unicodedata.category(character) == "Cf" for character in text)


def names_of(raw: Collection[Any]) -> str:
    """Name the columns of a row, some of many; in quotes where blanks at their ends would not be seen."""
    there = list(getattr(raw, "names", None) or raw)[:12]
    names = [name if name == name.strip() else repr(name) for name in map(str, there)]
    return ", ".join(names) or "none"


def value_at(raw: dict[str, Any], name: str) -> Any:
    """Return the value of a column, or of what lies within one (`extra_info.answer`); None where there is none."""
    if name in raw or "." not in name:
        return raw.get(name)
    value: Any = raw
    for part in name.split("."):
        if isinstance(value, str):  # a column of JSON
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value)
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


def _needed(there: Sequence[str], columns: Collection[str] | None, what: str) -> list[str]:
    wanted = None if columns is None else {*columns, *(name.partition(".")[0] for name in columns)}
    needed = [name for name in there if wanted is None or name in wanted]
    if not needed:
        other = next((sign for sign in ";\t|" if len(there) == 1 and sign in there[0]), None)
        hint = f"; its cells are separated by {other!r}: save it with commas, or as .tsv with tabs" if other else ""
        raise DataError(
            f"{what} has none of the columns that hold a question or an answer (see data.columns); it has: "
            f"{names_of(there)}{hint}"
        )
    if twice := [name for name in needed if needed.count(name) > 1]:
        raise DataError(f"{what} has two columns {twice[0]!r}; rename one")
    return needed


def _jsonl_rows(file: DataFile, _: Collection[str] | None, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield lines by number, blank ones left out; never more than `max_bytes` of the file in memory."""
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
                    row = _parsed(line)
                    if number == 1 and (line.strip() == b"[" or _is_list_of_rows(row)):
                        raise DataError(f"data.path: {file.path} holds one list of rows; let its name end in .json")
                    yield number, row
    except OSError as error:
        raise _read_error(file, number, error) from error


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _read_error(file: DataFile, number: int, error: Exception, form: str = "") -> DataError:
    """Make the error of a file that could not be read beyond a row."""
    after = f" after row {number}" if number else ""
    return read_error(file.filesystem, f"data.path: {file.path} cannot be read{after}{form}", error)


def _parsed(content: bytes, several_lines: bool = False) -> Any:
    """Return the value of a line, or of a file of several. Bytes that are no UTF-8 become lone surrogates, which matter
    only where they are used."""
    try:
        return json.loads(content.decode("utf-8-sig", "surrogateescape"))
    except RecursionError:
        return ValueError("no JSON (nested too deeply)")
    except json.JSONDecodeError as error:
        reason = error.msg[0].lower() + error.msg[1:]
        if error.doc.rstrip()[error.pos :] == "":
            return ValueError(f"no JSON (it ends too early: {reason})")
        column = f"character {error.colno}" + f" of line {error.lineno}" * several_lines
        return ValueError(f"no JSON ({reason}, at {column}: {error.doc[error.pos : error.pos + 20].strip()!r})")
    except ValueError:  # an integer of more digits than Python reads
        return ValueError("no JSON that can be read (a number of thousands of digits)")


def _json_rows(file: DataFile, columns: Collection[str] | None, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield rows of a list, which may be within an object (`{"data": [...]}`); or of lines, as many a .json file has
    them."""
    try:
        with file.open() as stream:
            first = stream.readline(max_bytes + 1)
            more = stream.read(1)
            if more and first.startswith(b"{") and isinstance(_parsed(first), dict):  # a row, and others after it
                content = None
            else:
                content = first + more + stream.read(MOST_JSON_BYTES)
    except OSError as error:
        raise _read_error(file, 0, error) from error
    if content is None:
        yield from _jsonl_rows(file, columns, max_bytes)
        return
    if len(content) > MOST_JSON_BYTES:
        raise DataError(f"data.path: {file.path} has more than {MOST_JSON_BYTES >> 30} GiB; save it as .jsonl")
    rows = _parsed(content, several_lines=True)
    if isinstance(rows, ValueError):
        raise DataError(f"data.path: {file.path} is {rows}")
    if isinstance(rows, dict):
        rows = next((rows[name] for name in ("data", "rows", "examples") if isinstance(rows.get(name), list)), [rows])
    if not isinstance(rows, list):
        raise DataError(f"data.path: {file.path} holds no list of rows; save it as .jsonl")
    yield from enumerate(rows, 1)


def _csv_rows(file: DataFile, columns: Collection[str] | None, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield rows below a header line."""
    csv.field_size_limit(min(max_bytes, sys.maxsize))
    number = 0
    try:
        with file.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
            lines = csv.reader(text, delimiter=_SEPARATORS[file.format or ""], strict=True)
            header = [name.strip() for name in next(lines, [])]
            needed = set(_needed(header, columns, f"data.path: {file.path}"))
            for line in filter(None, lines):
                number += 1
                if len(line) != len(header):
                    row: Any = ValueError(
                        f"{counted(len(line), 'cells')} where the header has {len(header)}; quote what has commas"
                    )
                else:
                    row = _cells({name: cell for name, cell in zip(header, line, strict=True) if name in needed})
                yield number, Row.of(row, header)
    except (csv.Error, OSError) as error:
        raise _read_error(file, number, error) from error


def _cells(row: dict[str, str]) -> Any:
    """Return a row of texts, with the values of those that are JSON objects or lists of objects."""
    found: dict[str, Any] = dict(row)
    for name, text in row.items():
        if text.startswith(("{", "[{")):
            value = _parsed(text.encode("utf-8", "surrogateescape"))
            if not isinstance(value, ValueError):
                found[name] = value
            elif text.startswith(("[{'", "{'")):
                return ValueError(f"{name} holds Python's spelling of a structure; save the data as .parquet or .jsonl")
    return found


def _arrow_rows(file: DataFile, columns: Collection[str] | None, _: int) -> Iterator[tuple[int, Any]]:
    import pyarrow

    number = 0
    try:
        with file.open() as stream:
            reader, batches = _arrow_batches(stream)
            needed = _needed(reader.schema.names, columns, f"data.path: {file.path}")
            for batch in batches:
                for row in _batch_rows(batch.select(needed)):
                    number += 1
                    yield number, Row.of(row, reader.schema.names)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _read_error(file, number, error, " as Arrow") from error


def _arrow_batches(stream: BinaryIO) -> tuple[Any, Iterable[Any]]:
    """Return the reader of an Arrow stream, as `datasets` writes it, or of an Arrow file, as others do; its batches."""
    import pyarrow

    begin = stream.read(6)
    stream.seek(0)
    if begin != b"ARROW1":
        reader = pyarrow.ipc.open_stream(stream)
        return reader, reader
    reader = pyarrow.ipc.open_file(stream)
    return reader, map(reader.get_batch, range(reader.num_record_batches))


def _parquet_rows(file: DataFile, columns: Collection[str] | None, _: int) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with file.open() as stream, contextlib.closing(pyarrow.parquet.ParquetFile(stream)) as table:
            needed = _needed(table.schema_arrow.names, columns, f"data.path: {file.path}")
            names = table.schema_arrow.names
            for batch in table.iter_batches(batch_size=256, columns=needed):
                for row in _batch_rows(batch):
                    number += 1
                    yield number, Row.of(row, names)
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _read_error(file, number, error, " as parquet") from error


def _batch_rows(batch: Any) -> list[Any]:
    """Return the rows of a record batch; of one that Python cannot hold (no UTF-8, a date too far off), the rows it
    can."""
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError):
        return [_batch_row(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _batch_row(batch: Any) -> Any:
    try:
        return batch.to_pylist(maps_as_pydicts="strict")[0]
    except (ValueError, OverflowError) as error:
        return ValueError(f"a value that cannot be read ({error})")


_READERS: dict[str, Callable[[DataFile, Collection[str] | None, int], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
