"""A model's shape from its config.json alone: what a plan needs, without torch and without weights."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from .checkpoint import EMBEDDING, HEAD, head_is_tied, stored_tensors

SUPPORTED = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""Architectures, and the model_type by which transformers finds the class of each."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone. Others (dynamic, longrope) depend on the length of the
sequence too, which engine and trainer see in different pieces."""

DTYPES = ("float32", "bfloat16", "float16")
"""Types of weights that are trained and served, as config.json names them."""

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Bytes of a chunk of logits (policies.model.token_logprobs), by device. Measured on a CPU at 49,152 entries: no slower
than all tokens at once."""
MOST_LAYERS = 10_000
MOST_UNITS = 1 << 31
"""Bounds on the sizes in a config.json: larger ones are slips, and a plan would count through them."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Llama-type decoder, named as in Hugging Face configs."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    max_positions: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Architecture":
        """Read the content of a config.json.

        Raises:
            ValueError: an architecture other than Qwen2(.5), Qwen3 or Llama; a size that is missing; a field that asks
                for what engine and trainer do not compute (see unsupported_fields).
        """
        if not isinstance(config, dict):
            raise ValueError(f"config.json holds a {type(config).__name__}, not an object with the model's sizes")
        names = config.get("architectures") or ["none"]
        name = names[0] if isinstance(names, list) else names
        if not isinstance(names, list) or not isinstance(name, str) or name not in SUPPORTED:
            raise ValueError(f"architecture {name!r} is not supported; supported are {', '.join(SUPPORTED)}")
        heads = _size(config, "num_attention_heads")
        hidden = _size(config, "hidden_size")
        architecture = cls(
            name=name,
            layers=_size(config, "num_hidden_layers", most=MOST_LAYERS),
            hidden=hidden,
            intermediate=_size(config, "intermediate_size"),
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads", heads),
            head_dim=_size(config, "head_dim", hidden // heads),
            vocabulary=_size(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=name == "Qwen2ForCausalLM" or bool(config.get("attention_bias", False)),
            qk_norm=name == "Qwen3ForCausalLM",
            max_positions=_size(config, "max_position_embeddings", 32768),
        )
        if heads % architecture.kv_heads:
            raise ValueError(
                f"config.json: num_key_value_heads: {architecture.kv_heads} does not divide num_attention_heads {heads}"
            )
        if found := unsupported_fields(config):
            raise ValueError("config.json: " + "; ".join(f"{field}: {reason}" for field, reason in found.items()))
        return architecture

    @classmethod
    def from_folder(cls, folder: Path) -> "Architecture":
        """Read a folder's config.json; whether the LM head is tied is read from the weights, where there are any.

        Raises:
            ValueError: no folder, no config.json in it, or one that does not parse; weights that cannot be read.
        """
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} has no config.json: it is not a Hugging Face model folder")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            architecture = cls.from_config(config)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if config.get("model_type") is None:
            raise ValueError(
                f"config.json lacks 'model_type', by which transformers finds a model's class; of an "
                f"{architecture.name} it is {json.dumps(SUPPORTED[architecture.name])}"
            )
        if not any(folder.glob("*.safetensors")):
            return architecture
        tied = head_is_tied(stored_tensors(folder))
        return architecture if tied is None else replace(architecture, tied=tied)

    @property
    def block_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one block's weights, by Hugging Face names within the block."""
        q, kv, hidden = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden
        shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
        shapes["post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"self_attn.{name}_proj.weight"] = (rows, hidden)
            if self.qkv_bias:
                shapes[f"self_attn.{name}_proj.bias"] = (rows,)
        shapes["self_attn.o_proj.weight"] = (hidden, q)
        if self.qk_norm:
            shapes |= {f"self_attn.{name}_norm.weight": (self.head_dim,) for name in "qk"}
        for name in ("gate", "up"):
            shapes[f"mlp.{name}_proj.weight"] = (self.intermediate, hidden)
        return shapes | {"mlp.down_proj.weight": (hidden, self.intermediate)}

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
    def layer_parameters(self) -> int:
        """Number of parameters of one block."""
        return sum(map(prod, self.block_weights.values()))

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model; a tied LM head counts once."""
        return self.layers * self.layer_parameters + sum(map(prod, self.outer_weights.values()))


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


def end_tokens(config: dict[str, Any]) -> list[int]:
    """Return the tokens that end a response by a config.json or generation_config.json.

    Raises:
        ValueError: `eos_token_id` holds something else than numbers of tokens.
    """
    ends = config.get("eos_token_id")
    numbers = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{json.dumps(number):.50} is no number of a token, which are whole numbers from 0")
    return numbers


def unsupported_fields(config: dict[str, Any]) -> dict[str, str]:
    """Name the fields of a config.json with which engine, trainer and transformers would compute different models.

    Args:
        config: the content of a config.json, of a supported architecture.

    Returns:
        By field, why it is not supported and what can be done; empty where all is well.
    """
    found: dict[str, str] = {}
    sliding = config.get("use_sliding_window", False) and config.get("sliding_window", 4096) is not None
    if sliding:
        found["use_sliding_window"] = (
            "attention over a sliding window is not supported; where no prompt with its response is longer than "
            "the window, set it to false, which computes the same"
        )
    elif not isinstance(types := config.get("layer_types") or [], list) or any(t != "full_attention" for t in types):
        found["layer_types"] = "has other layers than full_attention, which are not supported"
    for field in ("rope_parameters", "rope_scaling"):
        rope = config.get(field) or {}
        if not isinstance(rope, dict):
            found[field] = f"{json.dumps(rope):.50} is no object of settings"
            continue
        kind = "rope_type" if "rope_type" in rope else "type"
        if rope.get(kind, "default") not in ROPE_TYPES:
            found[f"{field}.{kind}"] = (
                f"{json.dumps(rope[kind])} is not supported; supported are {', '.join(ROPE_TYPES)}"
            )
        if "mrope_section" in rope:
            found[f"{field}.mrope_section"] = "is for images, which are not supported"
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            found[f"{field}.partial_rotary_factor"] = "other than 1 is not supported"
    off = {"partial_rotary_factor": 1.0, "hidden_act": "silu", "is_causal": True, "mlp_bias": False, "logit_scale": 1.0}
    if config["architectures"][0] != "Qwen2ForCausalLM":  # which has biases on q, k and v and ignores this field
        off["attention_bias"] = False
    for field, value in off.items():
        if config.get(field) not in (None, value):
            found[field] = f"{json.dumps(config[field])} is not supported, only {json.dumps(value)}"
    for field in ("rms_norm_eps", "rope_theta"):
        value = config.get(field, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            found[field] = f"{json.dumps(value):.50} is no number above 0"
    if not isinstance(config.get("tie_word_embeddings", False), bool | None):
        found["tie_word_embeddings"] = f"{json.dumps(config['tie_word_embeddings']):.50} is neither true nor false"
    if config.get("model_type") not in (None, kind := SUPPORTED[config["architectures"][0]]):
        found["model_type"] = f"{json.dumps(config['model_type']):.50} is not {kind}, which the architecture is"
    for field in ("dtype", "torch_dtype"):
        if config.get(field) is not None and str(config[field]).removeprefix("torch.") not in DTYPES:
            found[field] = f"{json.dumps(config[field]):.50} is not supported; supported are {', '.join(DTYPES)}"
    try:
        end_tokens(config)
    except ValueError as error:
        found["eos_token_id"] = str(error)
    if config.get("dual_chunk_attention_config"):
        found["dual_chunk_attention_config"] = "is not supported; without it the model attends to everything"
    if config.get("quantization_config"):
        found["quantization_config"] = "is not supported: quantized weights cannot be trained; take the original model"
    return found
