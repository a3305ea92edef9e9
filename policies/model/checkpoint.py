"""A model folder's weights as they lie on disk: safetensors read without torch, and what follows from the values.

What a model is stands in its weights; config.json may say something else, and is not believed where the two differ.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layersweep.policies.selection import EMBEDDING

HEAD = "lm_head.weight"
INDEX = "model.safetensors.index.json"
CHUNK = 1 << 22
"""Bytes that are read at a time."""
EXPONENT = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 31 << 10),
}
"""Bit patterns by dtype: an integer of the same width, and the bits of the exponent, all ones in NaN and infinity."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file."""

    path: Path
    name: str
    dtype: str
    """Name of the dtype as safetensors writes it, such as BF16."""
    shape: tuple[int, ...]
    content: memoryview
    """Bytes, little-endian, row by row; of the mapped file."""

    def chunks(self) -> Iterator[memoryview]:
        """Yield the content in pieces of at most CHUNK bytes."""
        for begin in range(0, len(self.content), CHUNK):
            yield self.content[begin : begin + CHUNK]


def shards(folder: Path) -> list[Path]:
    """Return a folder's weight files: those that its index names, else every *.safetensors.

    Raises:
        ValueError: the index names a file that is not there, or is not an index.
    """
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if odd := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"{odd[0]!r} is no file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of safetensors files: {error!r}") from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which {INDEX} names")
    return [folder / name for name in names]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a model folder by name; nothing is read but the files' headers.

    Raises:
        ValueError: a file that is missing, cut off, or no safetensors (a Git LFS pointer, for one).
    """
    return {tensor.name: tensor for path in shards(folder) for tensor in _tensors(path)}


def head_is_tied(tensors: dict[str, StoredTensor]) -> bool | None:
    """Return whether embedding and LM head are one weight: one of them is not stored, or their values are the same.

    None where neither is stored.
    """
    found = [tensors[name] for name in (EMBEDDING, HEAD) if name in tensors]
    if len(found) < 2:
        return True if found else None
    embedding, head = found
    if (embedding.dtype, embedding.shape) != (head.dtype, head.shape):
        return False
    return all(a == b for a, b in zip(embedding.chunks(), head.chunks(), strict=True))


def non_finite(tensors: dict[str, StoredTensor]) -> str | None:
    """Name the first tensor with a NaN or infinite value, and its file; None where all values are finite."""
    for tensor in tensors.values():
        if tensor.dtype not in EXPONENT:
            continue
        kind, ones = EXPONENT[tensor.dtype]
        for chunk in tensor.chunks():
            if ((np.frombuffer(chunk, kind) & ones) == ones).any():
                return f"{tensor.name} in {tensor.path}"
    return None


def refuse_non_finite(folder: Path) -> None:
    """Look at every weight of a folder.

    Raises:
        ValueError: one is NaN or infinite; or the files cannot be read.
    """
    if found := non_finite(stored_tensors(folder)):
        raise ValueError(f"{found} holds NaN or infinite values: the checkpoint is damaged")


def _tensors(path: Path) -> list[StoredTensor]:
    if not path.is_file():  # a pipe would keep its reader waiting
        raise ValueError(f"{path} is no file, or a link to none; download the model again")
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise ValueError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
        if len(start) < 8 or length > path.stat().st_size - 8:
            raise ValueError(f"{path} is no safetensors file, or is cut off")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + length :]
            tensors = [
                StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), whole[slice(*entry["data_offsets"])])
                for name, entry in header.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no safetensors file: {error!r:.200}") from error
    if any(entry["data_offsets"][1] > len(whole) for entry in header.values()):
        raise ValueError(f"{path} is cut off: its header promises more than its {path.stat().st_size:,} bytes")
    if max((entry["data_offsets"][1] for entry in header.values()), default=0) < len(whole):
        raise ValueError(f"{path} has bytes behind its last tensor: it is damaged; download the model again")
    return tensors
