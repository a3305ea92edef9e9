"""Files of a sweep's output: a folder or any fsspec URI, each file replaced atomically."""

import os
from collections.abc import Callable
from typing import BinaryIO

import fsspec


def write_atomically(target: str, write: Callable[[BinaryIO], object], durable: bool = False) -> None:
    """Write beside, then move over: a reader sees the old file or the new one, never half of one.

    Args:
        target: path or URI.
        write: gets the open file.
        durable: on a local disk, also wait until it would survive the machine.

    Raises:
        OSError: it could not be written, a full disk for example; nothing of it is left then.
    """
    filesystem, path = fsspec.core.url_to_fs(target)
    filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    # Never two writers on one scratch file: a retried call may overlap the first.
    scratch = f"{path}.{os.getpid()}.part"
    try:
        with filesystem.open(scratch, "wb") as file:
            write(file)
            if durable and "file" in filesystem.protocol:
                file.flush()
                os.fsync(file.fileno())
        filesystem.mv(scratch, path)
    except BaseException:
        if filesystem.exists(scratch):
            filesystem.rm_file(scratch)
        raise
