"""Raw rows from local files or a hub, each with its place, and the messages they hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """Data that cannot be used; the message names the field or the row and says what to do."""


def local_files(path: str) -> list[Path]:
    """The file, or the files of the folder in order. Cheap: nothing is opened.

    Raises:
        DataError: when there is no such path, or none that can be read.
    """
    if not Path(path).exists():
        raise DataError(f"data.path: {path} does not exist")
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).iterdir())
    files = [file for file in files if file.suffix in _READERS]
    if not files:
        raise DataError(f"data.path: {path} is no .parquet or .jsonl file and no folder that holds some")
    return files


def local_rows(files: list[Path], max_row_bytes: int) -> Iterator[tuple[str, Any]]:
    """Each row's place and its raw value, or the ValueError that says why it could not be read.

    Raises:
        DataError: for a file that cannot be read on.
    """
    for file in files:
        prefix = "" if len(files) == 1 else f"{file.name} "
        for number, row in _READERS[file.suffix](file, max_row_bytes):
            yield f"{prefix}row {number}", row


def hub_rows(name: str, subset: str | None, split: str, revision: str | None) -> Iterator[tuple[str, Any]]:
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
    yield from ((f"row {number}", row) for number, row in enumerate(data, 1))


def messages_of(raw: dict[str, Any], prompt: str, question: str) -> list[dict[str, str]]:
    """The messages in column `prompt`, else in column `question`; the last one is the user's.

    Raises:
        ValueError: says what is wrong with them.
    """
    name = prompt if raw.get(prompt) is not None else question
    if name not in raw:
        there = ", ".join(map(str, list(raw)[:12])) or "none"
        raise ValueError(f"no column {prompt!r} or {question!r} (see data.columns); there are: {there}")
    value = raw[name]
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError(f"{name} is neither text nor a list of messages but {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} is empty")
    messages = []
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name} has a message without a role of system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"{name} has a message whose content is not text")
        if not message["content"].strip():
            raise ValueError(f"{name} is empty")
        messages.append({"role": message["role"], "content": message["content"].strip()})
    if messages[-1]["role"] != "user":
        raise ValueError(f"{name} does not end with a message of the user")
    return messages


def _jsonl_rows(file: Path, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Lines by number, blank ones left out; never more than `max_bytes` of the file in memory."""
    number = 0
    with file.open("rb") as stream:
        while line := stream.readline(max_bytes + 1):
            number += 1
            if len(line) > max_bytes:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(max_bytes + 1)
                yield number, ValueError(f"longer than data.max_row_bytes, {max_bytes}")
            elif line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, ValueError(f"no JSON ({error})")


def _parquet_rows(file: Path, _: int) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"data.path: {file} cannot be read as parquet after row {number}: {error}") from error


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
