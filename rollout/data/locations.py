"""Paths and fsspec URIs: which of the two a text is, and the filesystem behind it."""

import os
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
"""Errors of files that another attempt does not change."""
_URI = re.compile(r"(?:\w[\w+.-]*::)*\w[\w+.-]*://", re.ASCII)
"""A protocol, or a chain of them (`simplecache::s3://`); `a::b.jsonl` is the name of a file."""
_LOCAL = re.compile(r"(?:file|local)://")


def local_path(location: str) -> str | None:
    """Return the path on this machine that a text means, also as `file://` writes it; None of another URI."""
    if scheme := _LOCAL.match(location):
        return location[scheme.end() :]
    return None if _URI.match(location) else location


def open_filesystem(location: str, **options: Any) -> tuple[Any, str]:
    """Return the filesystem of a path or URI, and the path in it.

    Args:
        options: of a filesystem that is not this machine's.

    Raises:
        Exception: as fsspec and its filesystems raise what they please.
    """
    if (path := local_path(location)) is not None:
        return LocalFileSystem(), os.path.abspath(path)
    return fsspec.core.url_to_fs(location, **options)


def is_local(filesystem: Any) -> bool:
    """Return whether a filesystem is this machine's own."""
    return isinstance(filesystem, LocalFileSystem)


def kind_of(filesystem: Any, path: str) -> str | None:
    """Tell whether a path is a `file`, a `directory` or something else (`other`); None where there is nothing.

    fsspec's own `isfile` and `isdir` say no where a store does not answer.

    Raises:
        Exception: as filesystems raise what they please.
    """
    try:
        # A local link is what it leads to, which `info` does not tell of every one.
        if is_local(filesystem):
            return "file" if os.path.isfile(path) else "directory" if os.path.isdir(path) else _other(path)
        return filesystem.info(path)["type"]
    except FileNotFoundError:
        return None


def _other(path: str) -> str | None:
    return "other" if os.path.exists(path) else None


def refuse_unknown_protocol(location: str) -> None:
    """Look a URI's protocols up; cheap, nothing is imported or opened.

    Raises:
        ValueError: fsspec does not know one of them.
    """
    if local_path(location) is not None:
        return
    for link in location.split("::"):
        protocol, mark, _ = link.partition("://")
        if mark and protocol not in fsspec.available_protocols():
            raise ValueError(f"{location}: {protocol}:// is no protocol that fsspec knows; correct its spelling")
