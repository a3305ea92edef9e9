"""A model's shape from its config.json alone: what a plan needs, without torch and without weights."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from .checkpoint import EMBEDDING, HEAD, head_is_tied, stored_tensors
from .config_fields import sliding_blocks, unsupported_fields
from .expert_weights import stored_names
from .families import FAMILIES, Family, refusal

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes of a chunk of logits (policies.model.token_logprobs), by device. Measured on a CPU at 49,152 entries: no slower
than all tokens at once."""
FLASH_HEAD_DIM, FLASH_MULTIPLE = 256, 8
"""Largest head that torch's FlashAttention has kernels for, and what every size must be a multiple of."""
MOST_LAYERS = 10_000
MOST_UNITS = 1 << 31
"""Bounds on the sizes in a config.json: larger ones are slips, and a plan would count through them."""


@dataclass(frozen=True)
class GpuKernels:
    """Kernels that a trainer on a GPU computes blocks with, in place of transformers' own modules."""

    varlen: bool = False
    """Whether attention is `varlen_attention`."""
    fused: bool = False
    """Whether norms, rotary embeddings and MLPs are those of `fused_gpu`."""


TRANSFORMERS = GpuKernels()
"""Modules of transformers alone."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder, named as in Hugging Face configs."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    """Hidden units of an MLP; of each expert, where there are several."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    window: int = 0
    """Positions that blocks with a sliding window attend to, the token's own among them."""
    sliding_layers: int = 0
    """Number of blocks with a sliding window."""
    experts: int = 0
    """MLPs in a block that a router chooses from; 0 is one MLP without a router."""
    active_experts: int = 0
    """Experts that compute a token."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Architecture":
        """Read the content of a config.json.

        Raises:
            ValueError: an architecture that is not supported, with the reason; a size that is missing; a field that
                asks for what engine and trainer do not compute (see unsupported_fields).
        """
        if not isinstance(config, dict):
            raise ValueError(f"config.json holds a {type(config).__name__}, not an object with the model's sizes")
        names = config.get("architectures") or ["none"]
        if not isinstance(names, list):
            raise ValueError(f"config.json: architectures: {json.dumps(names):.80} is not a list of names")
        name = names[0]
        if not isinstance(name, str) or name not in FAMILIES:
            raise ValueError(refusal(config, name if isinstance(name, str) else json.dumps(name)))
        if found := unsupported_fields(config):
            raise ValueError("config.json: " + "; ".join(f"{field}: {reason}" for field, reason in found.items()))
        family = FAMILIES[name]
        heads = _size(config, "num_attention_heads")
        hidden = _size(config, "hidden_size")
        layers = _size(config, "num_hidden_layers", most=MOST_LAYERS)
        sliding = sum(sliding_blocks(config, layers))
        architecture = cls(
            name=name,
            layers=layers,
            hidden=hidden,
            intermediate=_size(config, "moe_intermediate_size" if family.experts else "intermediate_size"),
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads", heads),
            head_dim=_size(config, "head_dim", hidden // heads),
            vocabulary=_size(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", name == "Gemma3ForCausalLM")),
            qkv_bias=family.qkv_bias or bool(config.get("attention_bias", False)),
            qk_norm=family.qk_norm != "none",
            max_positions=_size(config, "max_position_embeddings", 32768),
            window=_size(config, "sliding_window") if sliding else 0,
            sliding_layers=sliding,
        )
        if family.experts:
            # transformers reads num_experts as another name of num_local_experts, under which it saves it.
            experts = _size(config, "num_local_experts" if "num_local_experts" in config else "num_experts")
            active = _size(config, "num_experts_per_tok")
            architecture = replace(architecture, experts=experts, active_experts=active)
        if heads % architecture.kv_heads:
            raise ValueError(
                f"config.json: num_key_value_heads: {architecture.kv_heads} does not divide num_attention_heads {heads}"
            )
        if architecture.active_experts > architecture.experts:
            raise ValueError(
                f"config.json: num_experts_per_tok: {architecture.active_experts} is more than the "
                f"{architecture.experts} experts"
            )
        return architecture

    @classmethod
    def from_folder(cls, folder: Path) -> "Architecture":
        """Read a folder's config.json; whether the LM head is tied is read from the weights, where there are any.

        Raises:
            ValueError: no folder, no config.json in it, or one that does not parse; weights that cannot be read.
        """
        if not folder.is_dir():
            raise ValueError(
                f"there is no folder {folder}; name one in Hugging Face format, or a model of the hub as OWNER/NAME"
            )
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no config.json: it is not a Hugging Face model folder{_other_kind(folder)}")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            architecture = cls.from_config(config)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if config.get("model_type") is None:
            raise ValueError(
                f"config.json lacks 'model_type', by which transformers finds a model's class; of an "
                f"{architecture.name} it is {json.dumps(architecture.family.model_type)}"
            )
        if not any(folder.glob("*.safetensors")):
            return architecture
        tied = head_is_tied(stored_tensors(folder))
        return architecture if tied is None else replace(architecture, tied=tied)

    @property
    def family(self) -> Family:
        """The family that the sizes are of."""
        return FAMILIES[self.name]

    @property
    def block_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one block's weights, by transformers' names within the block."""
        q, kv, hidden, inner = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {f"{norm}.weight": (hidden,) for norm in self.family.norms}
        projections = {"qkv": q + 2 * kv} if self.family.fused else {"q": q, "k": kv, "v": kv}
        for name, rows in projections.items():
            shapes[f"self_attn.{name}_proj.weight"] = (rows, hidden)
            if self.qkv_bias:
                shapes[f"self_attn.{name}_proj.bias"] = (rows,)
        shapes["self_attn.o_proj.weight"] = (hidden, q)
        if self.qk_norm:
            whole = self.family.qk_norm == "projection"
            sizes = {"q": q if whole else self.head_dim, "k": kv if whole else self.head_dim}
            shapes |= {f"self_attn.{name}_norm.weight": (size,) for name, size in sizes.items()}
        if self.experts:
            return shapes | {
                "mlp.gate.weight": (self.experts, hidden),
                "mlp.experts.gate_up_proj": (self.experts, 2 * inner, hidden),
                "mlp.experts.down_proj": (self.experts, hidden, inner),
            }
        for name, rows in {"gate_up": 2 * inner}.items() if self.family.fused else {"gate": inner, "up": inner}.items():
            shapes[f"mlp.{name}_proj.weight"] = (rows, hidden)
        return shapes | {"mlp.down_proj.weight": (hidden, inner)}

    @property
    def outer_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights outside of blocks, by Hugging Face name; a tied LM head is the embedding."""
        outer = {EMBEDDING: (self.vocabulary, self.hidden), "model.norm.weight": (self.hidden,)}
        return outer if self.tied else outer | {HEAD: (self.vocabulary, self.hidden)}

    def weights_of(self, layers: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of some blocks' weights by Hugging Face name."""
        block = self.block_weights
        return {f"model.layers.{k}.{name}": shape for k in layers for name, shape in block.items()}

    @property
    def stored_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all blocks' weights by their names in files, which hold experts one by one."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.weights_of(range(self.layers)).items():
            parts = stored_names(name, self.experts)
            for names in parts:
                shapes |= dict.fromkeys(names, (shape[1] // len(names), shape[2]))
            if not parts:
                shapes[name] = shape
        return shapes

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of one block."""
        return sum(map(prod, self.block_weights.values()))

    @property
    def active_layer_parameters(self) -> int:
        """Number of parameters of one block that compute a token: of the experts those that are chosen."""
        idle = self.experts - self.active_experts
        return self.layer_parameters - idle * 3 * self.intermediate * self.hidden

    @property
    def mlp_width(self) -> int:
        """Numbers that gate and up each give for a token, of all experts that compute it."""
        return self.intermediate * (self.active_experts or 1)

    @property
    def largest_block_weight(self) -> int:
        """Number of parameters of a block's largest tensor."""
        return max(map(prod, self.block_weights.values()))

    def attended(self, context: float) -> float:
        """Return the mean number of positions that a token attends to over all blocks, after `context` of them."""
        sliding = self.sliding_layers * min(context, self.window)
        return (sliding + (self.layers - self.sliding_layers) * context) / self.layers

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model; a tied LM head counts once."""
        return self.layers * self.layer_parameters + sum(map(prod, self.outer_weights.values()))


def flash_head_dim(head_dim: int) -> bool:
    """Return whether torch's FlashAttention has kernels for heads of this size."""
    return head_dim <= FLASH_HEAD_DIM and head_dim % FLASH_MULTIPLE == 0


def _other_kind(folder: Path) -> str:
    """Say what a folder is that holds no model, where that can be seen, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return ", but an adapter; merge it into its base model (merge_and_unload of peft), and name that folder"
    if gguf := next(folder.glob("*.gguf"), None):
        return f"; name the GGUF file itself, such as {gguf}"
    return ""


def _size(config: dict[str, Any], field: str, default: int | None = None, most: int = MOST_UNITS) -> int:
    """Return a size of a config.json; `default` where the field is missing or null.

    Raises:
        ValueError: it is missing without a default, or no whole number from 1 to `most`.
    """
    value = default if config.get(field) is None else config[field]
    if field not in config and default is None:
        raise ValueError(f"config.json lacks {field!r}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"config.json: {field}: {value!r:.50} is not a whole number from 1 to {most:,}")
    return value
