"""A model folder's weights as they lie on disk: safetensors read without torch, and what follows from the values.

What a model is stands in its weights; config.json may say something else, and is not believed where the two differ.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
SHOWN = 3
"""Names in an error, at most."""
READ_WHOLE = 1 << 30
"""Bytes of weights that are looked through for NaN; of larger models only vectors and the beginnings of matrices."""
BEGINNING = 1 << 17
"""Bytes of a matrix's beginning."""
CHUNK = 1 << 22
"""Bytes that are looked at in one go."""
EXPONENT = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "BF16": ("<u2", 0xFF << 7),
    "F16": ("<u2", 31 << 10),
}
"""By dtype: an integer of the same width, and the bits of the exponent, all ones in NaN and infinity."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a safetensors file."""

    path: Path
    name: str
    dtype: str
    """As safetensors writes it, such as BF16."""
    shape: tuple[int, ...]
    content: memoryview
    """Bytes, little-endian, row by row; of the mapped file."""

    def chunks(self) -> Iterator[memoryview]:
        """Yield the content in pieces of at most CHUNK bytes."""
        for begin in range(0, len(self.content), CHUNK):
            yield self.content[begin : begin + CHUNK]


def shards(folder: Path) -> list[Path]:
    """Return a folder's weight files: those that its index names, else model.safetensors.

    Raises:
        ValueError: a file that is missing, or files of which it is not clear which belong to the model.
    """
    index, single = folder / INDEX, folder / SINGLE
    found = {path.name for path in folder.glob("*.safetensors")}
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{INDEX} is not an index of safetensors files: {error!r}") from error
        if missing := sorted(name for name in names if not (folder / name).is_file()):
            raise ValueError(f"{_listed(missing)} of {INDEX} is missing; download the model again")
        if SINGLE in found and SINGLE not in names:
            raise ValueError(f"{SINGLE} and {INDEX} name two sets of weights; remove one")
        return [folder / name for name in sorted(names)]
    if single.is_file():
        if others := sorted(found - {SINGLE}):
            raise ValueError(f"beside {SINGLE} there is {_listed(others)}, which vLLM loads too; remove it")
        return [single]
    pickled = any(path.suffix in (".bin", ".pt", ".pth") for path in folder.iterdir())
    instead = (
        f"; there is {_listed(sorted(found))}" if found else
        "; pickled weights (*.bin, *.pt) are not loaded: they can run code" if pickled else ""
    )  # fmt: skip
    raise ValueError(f"it holds neither {SINGLE} nor {INDEX}{instead}")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a model folder by name; nothing is read but the files' headers.

    Raises:
        ValueError: a file that is missing, cut off, or no safetensors (a Git LFS pointer, for one), or
            files of which it is not clear which belong to the model.
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


def non_finite(tensors: dict[str, StoredTensor]) -> list[str]:
    """Return the names of tensors with NaN or infinity; of large models as far as the beginnings of matrices show."""
    total = sum(len(tensor.content) for tensor in tensors.values())
    return [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in EXPONENT and _lacks_numbers(tensor, whole=total <= READ_WHOLE or len(tensor.shape) < 2)
    ]


def _lacks_numbers(tensor: StoredTensor, whole: bool) -> bool:
    kind, ones = EXPONENT[tensor.dtype]
    chunks = tensor.chunks() if whole else [tensor.content[:BEGINNING]]
    return any(bool(((np.frombuffer(chunk, kind) & ones) == ones).any()) for chunk in chunks)


def _tensors(path: Path) -> list[StoredTensor]:
    """Read the header of a safetensors file: 8 bytes of length, then JSON, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start and LFS_POINTER.startswith(start):
            raise ValueError(f"{path.name} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise ValueError(f"{path.name} is no safetensors file, or cut off; download the model again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path.name} is no safetensors file; download the model again") from error
        header.pop("__metadata__", None)
        if max((entry["data_offsets"][1] for entry in header.values()), default=0) != size - 8 - length:
            raise ValueError(f"{path.name} is cut off, or was written over; download the model again")
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + length :]
    return [
        StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), whole[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
