"""Files of a sweep's output: a folder or any fsspec URI, each file replaced atomically."""

from collections.abc import Callable
from typing import BinaryIO

import fsspec


def write_atomically(target: str, write: Callable[[BinaryIO], object]) -> None:
    """Write beside, then move over: a reader sees the old file or the new one, never half of one."""
    filesystem, path = fsspec.core.url_to_fs(target)
    filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    scratch = f"{path}.part"
    with filesystem.open(scratch, "wb") as file:
        write(file)
    filesystem.mv(scratch, path)
