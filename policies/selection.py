"""Selections: the set of parameters that a run trains."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["base", "full", "layer", "layers", "boost"]


@dataclass(frozen=True)
class Selection:
    """Set of trained parameters. `name` stands in the tables: base, full, layer-07, layers-best-5, boost-best-5, ..."""

    name: str
    kind: Kind
    layers: tuple[int, ...] = ()

    @classmethod
    def base(cls) -> "Selection":
        """Return the selection that trains nothing."""
        return cls("base", "base")

    @classmethod
    def full(cls) -> "Selection":
        """Return the selection that trains every parameter."""
        return cls("full", "full")

    @classmethod
    def layer(cls, k: int) -> "Selection":
        """Return the selection that trains block `k` alone."""
        return cls(f"layer-{k:02d}", "layer", (k,))

    @classmethod
    def several(cls, layers: tuple[int, ...], name: str | None = None) -> "Selection":
        """Return the selection that trains several blocks; null names it by their numbers."""
        ordered = tuple(sorted(set(layers)))
        return cls(name or "layers-" + "-".join(f"{k:02d}" for k in ordered), "layers", ordered)

    @classmethod
    def boost(cls, layers: tuple[int, ...], name: str) -> "Selection":
        """Return the selection that trains everything, `layers` at twice the learning rate (the study's Boost B_k)."""
        return cls(name, "boost", tuple(sorted(set(layers))))

    @property
    def trains_all(self) -> bool:
        """Whether every parameter of the model trains."""
        return self.kind in ("full", "boost")

    def trains(self, parameter: str) -> bool:
        """Return whether the parameter of this Hugging Face name trains.

        Layers train their block's tensors and nothing else: embeddings, final norm and LM head stay frozen.
        """
        return self.trains_all or self.names(parameter)

    def names(self, parameter: str) -> bool:
        """Return whether the parameter of this Hugging Face name belongs to one of `layers`."""
        match = re.match(r"model\.layers\.(\d+)\.", parameter)
        return match is not None and int(match[1]) in self.layers


def run_name(selection: str, seed: int) -> str:
    """A run's name: of its folders, actors and metrics everywhere."""
    return f"{selection}-seed{seed}"


def parse_run_name(name: str) -> tuple[str, int] | None:
    """Selection and seed behind a run's name; None where it is not one."""
    match = re.fullmatch(r"(.+)-seed(\d+)", name)
    return (match[1], int(match[2])) if match else None
