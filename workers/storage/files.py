"""Files of a sweep's output: a folder or any fsspec URI, each file replaced atomically."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec

from layersweep.rollout.data.locations import open_filesystem

if TYPE_CHECKING:  # half a second that help and errors need not wait for
    import pandas as pd

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"}
"""Protocols whose every object appears at once and whole, and that have no folders."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Extra of layersweep that brings a protocol's package."""


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn the classes that object stores raise, unreachable or without credentials, into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class NoStore(ImportError):
    """A URI whose package is not installed; the text says which."""


def resolve_uri(target: str) -> tuple[Any, str]:
    """Return the filesystem of a path or URI, and the path in it.

    Raises:
        NoStore: the package for it is missing.
        ValueError: there is no such protocol, its filesystem does not start, or it is no path.
    """
    if "\0" in target:
        raise ValueError("a null byte is in no path; correct it")
    try:
        # Listings are not cached: other processes write here too.
        return open_filesystem(target, use_listings_cache=False)
    except ImportError as error:
        protocol = target.partition("://")[0]
        fix = f"pip install 'layersweep[{EXTRAS[protocol]}]'" if protocol in EXTRAS else f"{error}"
        raise NoStore(f"{protocol}:// needs a package that is not installed here: {fix}") from error
    except ValueError:
        raise
    except Exception as error:  # a filesystem raises what it pleases when it connects, or opens an archive
        raise ValueError(f"{' '.join(str(error).split())[:200] or type(error).__name__}") from error


def is_object_store(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return not OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)


def write_atomically(target: str, write: Callable[[BinaryIO], object], durable: bool = False) -> None:
    """Write a file such that readers see the old content or the new, never half of it.

    Args:
        target: path or URI.
        write: gets the open file.
        durable: on a local disk, also wait until it would survive the machine.

    Raises:
        OSError: it could not be written, a full disk for example; nothing of it is left then.
    """
    filesystem, path = resolve_uri(target)
    if is_object_store(filesystem):
        whole = BytesIO()
        write(whole)
        with _plain_errors():
            filesystem.pipe_file(path, whole.getvalue())
        return
    filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    # Never two writers on one scratch file: a retried call may overlap the first.
    scratch = f"{path}.{os.getpid()}.part"
    try:
        with filesystem.open(scratch, "wb") as file:
            write(file)
            if durable and "file" in filesystem.protocol:
                file.flush()
                os.fsync(file.fileno())
        _rename(filesystem, scratch, path)
    except BaseException:
        if filesystem.exists(scratch):
            filesystem.rm_file(scratch)
        raise


def _rename(filesystem: Any, source: str, target: str) -> None:
    """Replace `target` by `source`. fsspec's own `mv`, where a filesystem has no other, takes brackets for patterns."""
    if type(filesystem).mv is fsspec.AbstractFileSystem.mv:
        filesystem.cp_file(source, target)
        filesystem.rm_file(source)
    else:
        filesystem.mv(source, target)


def create_exclusively(target: str, content: bytes) -> None:
    """Create a file that must not be there yet, by one of several that try it; on object stores by a conditional write.

    Raises:
        FileExistsError: it is there.
    """
    filesystem, path = resolve_uri(target)
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
        return
    if not is_object_store(filesystem):
        filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    with _plain_errors():
        filesystem.pipe_file(path, content, mode="create")


@_plain_errors()
def find_files(filesystem: Any, folder: str, depth: int | None = None) -> list[str]:
    """Return paths of all files in a folder, relative to it and sorted; none where there is no such folder.

    Nothing in this tree globs: in fsspec's patterns the brackets of a folder called `lr[2e-3]` mean something else.

    Args:
        filesystem, folder: as `resolve_uri` gives them.
        depth: levels to descend; 1 is the folder itself, None all.
    """
    prefix = folder.rstrip("/") + "/"
    found = filesystem.find(folder, maxdepth=depth)
    return sorted(path.removeprefix(prefix) for path in found if path.startswith(prefix))


@_plain_errors()
def remove_folder(filesystem: Any, folder: str) -> None:
    """Remove a folder and all that is in it; fsspec's own `rm` takes brackets for patterns."""
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        filesystem.rm(folder, recursive=True)
        return
    for path, entry in sorted(filesystem.find(folder, withdirs=True, detail=True).items(), reverse=True):
        if entry["type"] == "directory":
            _remove_empty(filesystem, path)
        else:
            filesystem.rm_file(path)
    _remove_empty(filesystem, folder)


def _remove_empty(filesystem: Any, folder: str) -> None:
    if not is_object_store(filesystem) and filesystem.isdir(folder):
        filesystem.rmdir(folder)


def read_bytes(target: str) -> bytes | None:
    """Return a file's content; None where there is no file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return read_file(*resolve_uri(target))
    except (FileNotFoundError, NotADirectoryError):  # the latter of a file within a file
        return None


@_plain_errors()
def read_file(filesystem: Any, path: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        _refuse_device(path)
        with open(path, "rb") as file:  # fsspec's own seeks, which pipes cannot
            return file.read()
    return filesystem.cat_file(path)


@_plain_errors()
def copy_here(filesystem: Any, path: str, target: str) -> None:
    """Copy a file to a local path.

    Raises:
        OSError: it cannot be read, or not be written here.
    """
    filesystem.get_file(path, target)


def _refuse_device(path: str) -> None:
    """Refuse /dev/zero and its like, which never end, and pipes that may have no writer; those that a shell makes of
    `<(command)` have one."""
    kind = os.stat(path).st_mode
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        raise OSError("it is a device, not a file")
    if stat.S_ISFIFO(kind) and not path.startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        raise OSError("it is a pipe, not a file")


def read_table(target: str) -> "pd.DataFrame":
    """Read a parquet file through fsspec: pandas would ask pyarrow, which has settings of its own.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not parquet.
    """
    import pandas as pd
    import pyarrow as pa

    if (content := read_bytes(target)) is None:
        raise FileNotFoundError(f"{target}: no such file")
    try:
        return pd.read_parquet(BytesIO(content))
    except pa.ArrowException as error:
        raise ValueError(f"cannot be read as parquet: {error}") from error
