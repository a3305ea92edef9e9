"""Selections: the set of parameters that a run trains."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["base", "full", "layer", "layers", "part", "boost"]

EMBEDDING = "model.embed_tokens.weight"
MODULES = {
    "attention": r"self_attn\.([qkvo]|qkv)_proj\.",
    "mlp": r"mlp\.",
    "norms": r"norm\.weight",
}
"""Parts of a block by name, as patterns that are searched for in parameter names. Together they are the whole block:
`norms` are those before attention and MLP, and of queries and keys."""
_MATRIX = re.compile(r"(?<!norm)(?<!mlp\.gate)\.weight$")
"""Weights of linear modules: neither norms nor biases, nor experts and their router."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class LowRank:
    """Low-rank adapters: a matrix W is served as W + alpha / rank * B A, and B and A train (LoRA, arXiv 2106.09685)."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank

    @property
    def label(self) -> str:
        """Text in a selection's name: lora-8, or with an alpha other than the rank lora-8-alpha-16."""
        return f"lora-{self.rank}" + (f"-alpha-{self.alpha:g}" if self.alpha != self.rank else "")


@dataclass(frozen=True)
class Selection:
    """Set of trained parameters. `name` stands in the tables: base, full, layer-07, layer-07-mlp, layers-best-5, ..."""

    name: str
    kind: Kind
    layers: tuple[int, ...] = ()
    """Blocks, ascending. A part of none is one of the parameters outside of blocks."""
    modules: str | None = None
    """A name of MODULES, or a regular expression that is searched for in the parameter names within a block (without
    layers: in the names outside of blocks); None is all of them."""
    lora: LowRank | None = None
    """Adapters that train in place of the matrices themselves; norms and biases stay frozen then."""

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
        """Return the selection that trains several blocks; null names it by their numbers, 3 to 9 as 03-to-09."""
        ordered = tuple(sorted(set(layers)))
        return cls(name or f"layers-{'-'.join(_numbers(ordered))}", "layers", ordered)

    @classmethod
    def part(cls, layers: tuple[int, ...], modules: str | None, lora: LowRank | None = None) -> "Selection":
        """Return the selection that trains what `modules` names of several blocks, or without layers outside of them.

        Its name is that of the layers and the letters and digits of `modules`: layer-07-mlp, layers-03-07-q_proj; then
        that of `lora`: layer-07-mlp-lora-8.
        """
        whole = cls.layer(*layers) if len(layers) == 1 else cls.several(layers)
        labels = [whole.name if layers else "outside"]
        if modules is not None:
            labels.append("-".join(re.findall(r"\w+", modules, re.ASCII)) or "part")
        if lora is not None:
            labels.append(lora.label)
        return cls("-".join(labels), "part", whole.layers, modules, lora)

    @classmethod
    def boost(cls, layers: tuple[int, ...], name: str) -> "Selection":
        """Return the selection that trains everything, `layers` at twice the learning rate (the study's Boost B_k)."""
        return cls(name, "boost", tuple(sorted(set(layers))))

    @property
    def trains_all(self) -> bool:
        """Whether every parameter of the model trains."""
        return self.kind in ("full", "boost")

    def trains(self, parameter: str) -> bool:
        """Return whether the parameter of this Hugging Face name trains, or its adapters do.

        Layers train their block's tensors and nothing else: embeddings, final norm and LM head stay frozen. A tied LM
        head goes by the name of the embedding.
        """
        return self.trains_all or (self.kind != "base" and self.names(parameter))

    def names(self, parameter: str) -> bool:
        """Return whether the parameter of this Hugging Face name belongs to `modules` of one of `layers`."""
        match = _LAYER.fullmatch(parameter)
        if (int(match[1]) not in self.layers) if match else (self.layers or self.modules is None):
            return False
        if self.lora and not _MATRIX.search(parameter):
            return False
        pattern = MODULES.get(self.modules, self.modules)
        return pattern is None or re.search(pattern, match[2] if match else parameter) is not None

    @property
    def outside(self) -> bool:
        """Whether parameters outside of blocks train: embedding, final norm, LM head."""
        return self.trains_all or self.kind == "part" and not self.layers

    def first_block(self, count: int) -> int:
        """Return the first of a model's `count` blocks that gradients pass through: what is below it is frozen."""
        if self.trains_all or self.trains(EMBEDDING):
            return 0
        return min(self.layers, default=count)


def _numbers(layers: tuple[int, ...]) -> list[str]:
    """Return the numbers as text, three or more neighbours as first-to-last: file names have room for 255 bytes."""
    texts, begin = [], 0
    for end in range(1, len(layers) + 1):
        if end == len(layers) or layers[end] != layers[end - 1] + 1:
            run, begin = layers[begin:end], end
            texts += [f"{run[0]:02d}-to-{run[-1]:02d}"] if len(run) > 2 else [f"{k:02d}" for k in run]
    return texts


def run_name(selection: str, seed: int) -> str:
    """Return a run's name: of its folders, actors and metrics everywhere."""
    return f"{selection}-seed{seed}"


def parse_run_name(name: str) -> tuple[str, int] | None:
    """Selection and seed behind a run's name; None where it is not one."""
    match = re.fullmatch(r"(.+)-seed(\d+)", name)
    return (match[1], int(match[2])) if match else None
