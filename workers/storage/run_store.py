"""Checkpoint directory of a run: what is done, on disk before it is reported.

    <sweep>/checkpoints/<run>/run.json                        what is known of the run: selection, status, reason, ...
    <sweep>/checkpoints/<run>/step-000010/record.json         its first 10 steps: a row of steps.parquet each
    <sweep>/checkpoints/<run>/step-000010/rank-0.safetensors  weights, optimizer state and RNG of a rank after them
    <sweep>/checkpoints/<run>/scores/000030.final.math.parquet

A checkpoint exists once its record does, which is written last and names the checksums of the other files; a record
has its own checksum in it. Every file is replaced atomically. Prompts and samples need no cursor beyond the step: they
follow from the sweep's seed and the step alone.
"""

import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from .files import find_files, read_file, remove_folder, resolve_uri, write_atomically


class CorruptFile(RuntimeError):
    """A file of a run's store that is not what was written."""


@dataclass(frozen=True)
class CheckpointRecord:
    """State of a run after `step` steps.

    `files` maps the name of each rank's file to its XXH3-128 checksum, `rows` are those of steps.parquet, `seconds` is
    the wall time until then.
    """

    step: int
    files: dict[str, str]
    rows: list[dict[str, Any]]
    seconds: float


def rank_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def checksum(content: bytes) -> str:
    """XXH3-128, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(content)


class _Digested:
    """A file that is written once from its start, with a digest of what was written."""

    def __init__(self, file: BinaryIO, digest: xxhash.xxh3_128):
        self.file, self.digest = file, digest

    def write(self, content: bytes | memoryview) -> int:
        self.digest.update(content)
        return self.file.write(content)


class RunStore:
    """Files of one run: metadata, checkpoints, scores.

    Args:
        folder: the sweep's folder or URI.
        run: the run's name.
    """

    def __init__(self, folder: str, run: str):
        self.run, self.folder = run, f"{folder}/checkpoints/{run}"
        self.filesystem, self.path = resolve_uri(self.folder)

    # -- what is known of the run -----------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """Return the content of run.json; empty before there is one, and where it is damaged: it is found out again."""
        try:
            return read_json(self.filesystem, f"{self.path}/run.json")
        except CorruptFile:
            return {}

    def write_metadata(self, metadata: dict[str, Any]) -> None:
        write_json(f"{self.folder}/run.json", metadata)

    # -- checkpoints ------------------------------------------------------------------------------------------

    def checkpoint_dir(self, step: int) -> str:
        """Return the folder of the checkpoint after `step` steps."""
        return f"{self.folder}/step-{step:06d}"

    def write_file(self, step: int, name: str, write: Callable[[BinaryIO], object]) -> str:
        """Write one rank's file, before the record is committed; return its checksum.

        Args:
            write: gets the open file.
        """
        digest = xxhash.xxh3_128()

        def write_and_digest(file: BinaryIO) -> None:
            write(_Digested(file, digest))

        write_atomically(f"{self.checkpoint_dir(step)}/{name}", write_and_digest, durable=True)
        return digest.hexdigest()

    def read_file(self, record: CheckpointRecord, name: str) -> bytes:
        """Read one rank's file.

        Raises:
            CorruptFile: it is gone, or not what the record says.
            OSError: it could not be read now.
        """
        path = f"{self.path}/step-{record.step:06d}/{name}"
        try:
            content = read_file(self.filesystem, path)
        except FileNotFoundError as error:
            raise CorruptFile(f"{path} is gone") from error
        if checksum(content) != record.files.get(name):
            raise CorruptFile(f"{path} is damaged: its checksum is not the one recorded")
        return content

    def commit(self, record: CheckpointRecord, keep: int) -> None:
        """Write the record, from which on the checkpoint exists; of older ones keep the newest `keep` - 1."""
        write_json(f"{self.checkpoint_dir(record.step)}/record.json", vars(record))
        for step in self.steps()[keep:]:
            remove_folder(self.filesystem, f"{self.path}/step-{step:06d}")

    def delete_weights(self) -> None:
        """Delete weights and optimizer state of a run that will not continue; rows and scores stay."""
        for path in find_files(self.filesystem, self.path, depth=2):
            if fnmatch(path, "step-*/rank-*"):
                self.filesystem.rm_file(f"{self.path}/{path}")

    def steps(self) -> list[int]:
        """Return the steps with a checkpoint, newest first, damaged or not."""
        self.filesystem.invalidate_cache()
        found = find_files(self.filesystem, self.path, depth=2)
        matches = (re.fullmatch(r"step-(\d+)/record\.json", path) for path in found)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def records(self) -> tuple[list[CheckpointRecord], list[str]]:
        """Return all intact records, newest first, and what is wrong with the others."""
        records, problems = [], []
        for step in self.steps():
            try:
                records.append(
                    CheckpointRecord(**read_json(self.filesystem, f"{self.path}/step-{step:06d}/record.json"))
                )
            except CorruptFile as error:
                problems.append(str(error))
        return records, problems

    # -- scores -----------------------------------------------------------------------------------------------

    def write_scores(self, step: int, split: str, suite: str, scores: pd.DataFrame) -> None:
        table = pa.Table.from_pandas(scores, preserve_index=False)
        write_atomically(
            f"{self.folder}/scores/{step:06d}.{split}.{suite}.parquet",
            lambda file: pq.write_table(table, file, write_page_checksum=True),
            durable=True,
        )

    def scored(self) -> set[tuple[int, str, str]]:
        """Return (step, split, suite) of every evaluation that is done and intact."""
        return {key for key, _ in self.scores()}

    def scores(self) -> list[tuple[tuple[int, str, str], pd.DataFrame]]:
        """Return every evaluation that is done. A damaged file counts as none: the evaluation is cheap to repeat."""
        found = []
        for name in find_files(self.filesystem, f"{self.path}/scores", depth=1):
            if not name.endswith(".parquet"):
                continue
            step, split, suite = name.removesuffix(".parquet").split(".", 2)
            content = io.BytesIO(read_file(self.filesystem, f"{self.path}/scores/{name}"))
            try:
                frame = pq.read_table(content, page_checksum_verification=True).to_pandas()
            except (pa.ArrowException, OSError):
                continue
            found.append(((int(step), split, suite), frame))
        return found


def runs_of(folder: str) -> list[str]:
    """Return the names of all runs that have begun."""
    filesystem, path = resolve_uri(f"{folder}/checkpoints")
    return [name.removesuffix("/run.json") for name in find_files(filesystem, path, 2) if name.endswith("/run.json")]


def remove_partial_files(folder: str, names: Iterable[str]) -> None:
    """Remove partial files that a killed process left below the runs' folders."""
    for run in names:
        filesystem, path = resolve_uri(f"{folder}/checkpoints/{run}")
        for name in find_files(filesystem, path):
            if name.endswith(".part"):
                filesystem.rm_file(f"{path}/{name}")


def write_json(target: str, content: dict[str, Any]) -> None:
    """Write a JSON file with the content's checksum in it."""
    body = json.dumps(content, indent=1, default=lambda scalar: scalar.item())  # numpy's
    text = json.dumps({"xxh3_128": checksum(body.encode())})[:-1] + f', "content": {body}}}\n'
    write_atomically(target, lambda file: file.write(text.encode()), durable=True)


def read_json(filesystem: Any, path: str) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        CorruptFile: it is gone, or not what was written.
        OSError: it could not be read now; a store that does not answer says nothing about the file.
    """
    try:
        document = json.loads(read_file(filesystem, path))
        content = document["content"]
        intact = document["xxh3_128"] == checksum(json.dumps(content, indent=1).encode())
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise CorruptFile(f"{path} is damaged: {error}") from error
    if not intact:
        raise CorruptFile(f"{path} is damaged: its checksum is not the one recorded")
    return content
