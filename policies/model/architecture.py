"""A model's shape from its config.json alone: what a plan needs, without torch and without weights."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import head_is_tied, stored_tensors

SUPPORTED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone. Others (dynamic, longrope) depend on the length of the
sequence too, which engine and trainer see in different pieces."""


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
        name = (config.get("architectures") or ["none"])[0]
        if name not in SUPPORTED:
            raise ValueError(f"architecture {name!r} is not supported; supported are {', '.join(SUPPORTED)}")
        try:
            heads = config["num_attention_heads"]
            architecture = cls(
                name=name,
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                intermediate=config["intermediate_size"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocabulary=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                qkv_bias=name == "Qwen2ForCausalLM" or bool(config.get("attention_bias", False)),
                qk_norm=name == "Qwen3ForCausalLM",
                max_positions=config.get("max_position_embeddings", 32768),
            )
        except KeyError as missing:
            raise ValueError(f"config.json lacks {missing}") from missing
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
            architecture = cls.from_config(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not any(folder.glob("*.safetensors")):
            return architecture
        tied = head_is_tied(stored_tensors(folder))
        return architecture if tied is None else replace(architecture, tied=tied)

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of one block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv) + (q + 2 * kv if self.qkv_bias else 0)
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + norms + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model; a tied LM head counts once."""
        outer = self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden
        return self.layers * self.layer_parameters + outer


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
    elif any(kind != "full_attention" for kind in config.get("layer_types") or []):
        found["layer_types"] = "has other layers than full_attention, which are not supported"
    for field in ("rope_parameters", "rope_scaling"):
        rope = config.get(field) or {}
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
    if config.get("dual_chunk_attention_config"):
        found["dual_chunk_attention_config"] = "is not supported; without it the model attends to everything"
    if config.get("quantization_config"):
        found["quantization_config"] = "is not supported: quantized weights cannot be trained; take the original model"
    return found
