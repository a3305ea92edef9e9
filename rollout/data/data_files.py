"""The files that `data.path` means: one file, or those of a folder that belong to one split, local or at a URI."""

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from .locations import PERMANENT, is_local, kind_of, open_filesystem

TEXT_FORMATS = (".jsonl", ".json", ".csv", ".tsv")
FORMATS = (*TEXT_FORMATS, ".parquet", ".arrow")
"""Formats by suffix; .arrow is what `save_to_disk` of Hugging Face's `datasets` writes."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Suffixes of compressed text files and their codec in pyarrow; parquet has its own compression."""
READABLE = (
    f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} files are read, text also compressed ({', '.join(COMPRESSIONS)})"
)
MOST_FILES = 20_000
"""A folder of more files is a slip, such as the home folder, and listing it would take minutes."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the names of files and folders by the split that they mean, as in Hugging Face's `datasets`."""
_PLACEHOLDERS = {"data"}
"""Names of folders that say nothing about their content."""
_NOT_DATA = {"", ".md", ".txt", ".rst", ".py", ".sh", ".yaml", ".yml", ".toml", ".html", ".pdf", ".png", ".jpg", ".svg",
             ".bib", ".cff", ".lock"}  # fmt: skip
_METADATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}


class DataError(ValueError):
    """Data that cannot be used; the message names the field or the row and says what to do."""


_DAMAGED = (ValueError, NotImplementedError, csv.Error)
"""Errors of content, by Python, pyarrow and csv."""


class DataUnavailable(DataError, OSError):
    """Data that a store did not give, which may pass; an OSError, so that it is retried as others are."""


def read_error(filesystem: Any, message: str, error: Exception) -> DataError:
    """Make the error of data that could not be read: one that may pass, unless another attempt would not change it."""
    passing = not is_local(filesystem) and not isinstance(error, (*PERMANENT, *_DAMAGED))
    reason = " ".join(str(error).split()) or type(error).__name__
    return (DataUnavailable if passing else DataError)(f"{message}: {reason}")


@dataclass(frozen=True)
class DataFile:
    """One file of a data set."""

    filesystem: Any
    path: str
    name: str
    """Path within the folder, or the file's name where it was named itself."""

    @property
    def format(self) -> str | None:
        """One of FORMATS; None for a file that cannot be read."""
        suffixes = [suffix.lower() for suffix in PurePosixPath(self.name).suffixes[-2:]]
        if suffixes and suffixes[-1] in COMPRESSIONS:
            return suffixes[0] if suffixes[0] in TEXT_FORMATS else None
        return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None

    def open(self) -> BinaryIO:
        """Open the content, decompressed.

        Raises:
            OSError: it cannot be opened, holds something else than its name says, or is a pipe, a socket or a device,
                which could keep a reader waiting forever.
        """
        if is_local(self.filesystem) and not self.filesystem.isfile(self.path):
            raise OSError("it is no ordinary file")
        stream = self.filesystem.open(self.path, "rb")
        if other := _other_content(stream.read(24), self.name):
            stream.close()
            raise OSError(f"by its first bytes it is {other}")
        stream.seek(0)
        if kind := COMPRESSIONS.get(PurePosixPath(self.name).suffix.lower()):
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(stream, kind))
        # `readline` of fsspec's own files, as those of buckets are, has no bound.
        return stream if is_local(self.filesystem) else io.BufferedReader(stream)


_FIRST_BYTES = {
    b"version https://git-lfs": (None, "a Git LFS pointer, not the data: run `git lfs pull` there"),
    b"\x1f\x8b": (".gz", "compressed by gzip; let its name end in .gz"),
    b"BZh": (".bz2", "compressed by bzip2; let its name end in .bz2"),
    b"\x28\xb5\x2f\xfd": (".zst", "compressed by zstd; let its name end in .zst"),
    b"PK\x03\x04": (None, "a zip archive or a spreadsheet; save the data as .csv or .jsonl"),
    b"PAR1": (".parquet", "parquet; let its name end in .parquet"),
    b"\xff\xfe": (None, "UTF-16 text; save it as UTF-8"),
    b"\xfe\xff": (None, "UTF-16 text; save it as UTF-8"),
}
"""Beginnings of files that are not what most data files hold: the suffix that goes with them, and what to do."""


def _other_content(start: bytes, name: str) -> str | None:
    """Say what a file holds by its first bytes, where its name says something else."""
    suffix = PurePosixPath(name).suffix.lower()
    return next(
        (what for bytes_, (own, what) in _FIRST_BYTES.items() if start.startswith(bytes_) and own != suffix), None
    )


def data_files(path: str, split: str, subset: str | None) -> list[DataFile]:
    """List the files of one split, in order. Cheap: nothing is opened.

    Args:
        path: a file or folder, `~` allowed, or an fsspec URI.
        split: of a folder whose files or inner folders name their splits (`train-00000.parquet`, `data/test/x.jsonl`).
        subset: the inner folder, where several hold data.

    Raises:
        DataError: there is no such path, nothing in it can be read, or it could mean more than one data set.
        DataUnavailable: a store did not answer.
    """
    path = os.path.expanduser(path)
    try:
        filesystem, root = open_filesystem(path)
    except Exception as error:  # filesystems raise anything
        raise DataError(f"data.path: {path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    try:
        kind = kind_of(filesystem, root)
        if kind is None:
            raise DataError(f"data.path: {path} does not exist{_hint(path)}")
        if kind == "file":
            return [_single_file(DataFile(filesystem, root, PurePosixPath(root).name), path, split, subset)]
        if kind != "directory":
            raise DataError(
                f"data.path: {path} is neither a file nor a folder; a pipe or a device cannot be read twice"
            )
        found = _listed_files(filesystem, root, path)
    except DataError:
        raise
    except Exception as error:  # object stores raise anything
        raise read_error(filesystem, f"data.path: {path}", error) from error
    files = [DataFile(filesystem, file, os.path.relpath(file, root)) for file in sorted(found)]
    files = [file for file in files if _may_be_data(file)]
    if not any(file.format for file in files):
        raise DataError(f"data.path: {path} is a folder without data: {READABLE}")
    files = _of_split(_of_subset(files, path, subset), path, split)
    if unreadable := [file.name for file in files if not file.format]:
        raise DataError(
            f"data.path: {path} holds {_listed(unreadable)}, which cannot be read: {READABLE}; convert them, take them "
            "out, or name one file"
        )
    return files


def _hint(path: str) -> str:
    """Say what somebody may have meant by a path that does not exist."""
    if re.search(r"[*?{]", path):
        return "; patterns are not expanded, name the folder of the files"
    return "" if PurePosixPath(path).suffix else "; a data set of the hub is named in data.hub instead"


def _listed_files(filesystem: Any, root: str, path: str) -> list[str]:
    """Return the paths of all files below a folder.

    Raises:
        DataError: there are more than MOST_FILES.
        Exception: a folder below it cannot be listed.
    """
    found: list[str] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        # Not fsspec's `walk`: what it cannot list it leaves out, without a word.
        for entry in filesystem.ls(folder, detail=True):
            if entry["name"].rstrip("/") != folder.rstrip("/"):  # an empty object may stand for the folder itself
                (folders if entry["type"] == "directory" else found).append(entry["name"])
        if len(found) > MOST_FILES:
            raise DataError(
                f"data.path: {path} holds more than {MOST_FILES:,} files; name the folder of the data alone"
            )
    return found


def _single_file(file: DataFile, path: str, split: str, subset: str | None) -> DataFile:
    if subset is not None:
        raise DataError(f"data.subset: {path} is one file and has no subsets; leave it out")
    if split != "train":
        raise DataError(f"data.split: {path} is one file and has no split {split!r}; leave it out, or name the folder")
    if not file.format:
        raise DataError(f"data.path: {path} cannot be read: {READABLE}")
    return file


def _may_be_data(file: DataFile) -> bool:
    parts = PurePosixPath(file.name).parts
    if any(part.startswith((".", "_")) for part in parts):
        return False
    suffix = PurePosixPath(file.name).suffix.lower()
    if suffix == ".arrow" and parts[-1].startswith("cache-"):  # what `datasets` made of the data meanwhile
        return False
    return parts[-1] not in _METADATA and (suffix not in _NOT_DATA or _is_linked_folder(file))


def _is_linked_folder(file: DataFile) -> bool:
    """Return whether a path that fsspec listed as a file is a link to a folder, whose content it leaves out."""
    return bool(file.filesystem.isdir(file.path))


def _of_subset(files: Sequence[DataFile], path: str, subset: str | None) -> list[DataFile]:
    """Select the files of one inner folder; folders that name a split do not count as one."""
    folders: dict[str, list[DataFile]] = {}
    for file in files:
        parents = PurePosixPath(file.name).parts[:-1]
        folder = "/".join(part for part in parents if part not in _PLACEHOLDERS and not _splits_in(part))
        folders.setdefault(folder, []).append(file)
    if subset is None and len(folders) == 1:
        return list(files)
    names = _listed([folder or "the folder itself" for folder in folders])
    if subset is None:
        raise DataError(
            f"data.subset: {path} has data in {names}; name one of them, or the folder that you mean in data.path"
        )
    if subset not in folders:
        raise DataError(f"data.subset: {path} has no {subset!r}; there is data in {names}")
    return folders[subset]


def _of_split(files: Sequence[DataFile], path: str, split: str) -> list[DataFile]:
    if split not in SPLITS:  # a name of the data set's own, such as "algebra"
        named = [file for file in files if split in re.split(r"[^\w]|_", file.name) or split in file.name.split("/")]
        if not named:
            raise DataError(f"data.split: no file of {path} names {split!r}; there are {_listed(_names(files))}")
        return named
    splits: dict[str, list[DataFile]] = {}
    for file in files:
        splits.setdefault(_split_of(file, path), []).append(file)
    if splits.keys() == {""}:
        if split != "train":
            raise DataError(
                f"data.split: no file of {path} names a split ({_listed(_names(files))}); name the {split} file itself "
                "in data.path"
            )
        return list(files)
    if "" in splits:
        raise DataError(
            f"data.split: {path} has files that name a split and others that do not, such as {splits[''][0].name}; "
            "name a file or an inner folder in data.path"
        )
    if split not in splits:
        raise DataError(f"data.split: {path} has no {split} files; there are {_listed(list(splits))}")
    return splits[split]


def _split_of(file: DataFile, path: str) -> str:
    """Return the split that a file's name says, else the nearest folder's; empty where none does."""
    for part in reversed(PurePosixPath(file.name).parts):
        if len(splits := _splits_in(part)) > 1:
            raise DataError(
                f"data.split: {file.name} of {path} names the splits {' and '.join(splits)}; name the file itself in "
                "data.path"
            )
        if splits:
            return splits[0]
    return ""


def _splits_in(name: str) -> list[str]:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return [split for split, spellings in SPLITS.items() if words.intersection(spellings)]


def _names(files: Sequence[DataFile]) -> list[str]:
    return [file.name for file in files]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
