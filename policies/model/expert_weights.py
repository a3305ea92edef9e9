"""Names of experts' weights: transformers keeps those of a block in two tensors, files hold each expert's apart."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)")
APART = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Parts, by transformers' name, that are the rows of its tensor [experts, rows, columns], one after another."""


def stored_names(name: str, experts: int) -> list[list[str]]:
    """Return the names in files of what a parameter is put together from: of each expert, its parts; of others none."""
    match = TOGETHER.fullmatch(name)
    if not match:
        return []
    return [[f"{match[1]}.{e}.{part}.weight" for part in PARTS[match[2]]] for e in range(experts)]


def parameter_names(stored: Iterable[str]) -> dict[str, list[list[str]]]:
    """Return the parameters that files hold in parts, each with the parts' names by expert."""
    found: dict[str, int] = {}
    for name in stored:
        if match := APART.fullmatch(name):
            together = next(whole for whole, parts in PARTS.items() if match[3] in parts)
            whole = f"{match[1]}.{together}"
            found[whole] = max(found.get(whole, 0), int(match[2]) + 1)
    return {name: stored_names(name, experts) for name, experts in found.items()}


def as_stored(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return weights by their names in files, experts one by one; the tensors share memory with those given."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        parts = stored_names(name, len(tensor))
        if not parts:
            found[name] = tensor
        for names, expert in zip(parts, tensor, strict=False):
            found |= zip(names, expert.chunk(len(names)), strict=True)
    return found
