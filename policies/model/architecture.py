"""A model's shape from its config.json alone: what a plan needs, without torch and without weights."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import head_is_tied, stored_tensors

SUPPORTED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


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
        """From the content of a config.json.

        Raises:
            ValueError: an architecture other than Qwen2(.5), Qwen3 or Llama; a size that is missing.
        """
        if not isinstance(config, dict):
            raise ValueError(f"config.json holds a {type(config).__name__}, not an object with the model's sizes")
        name = (config.get("architectures") or ["none"])[0]
        if name not in SUPPORTED:
            raise ValueError(f"architecture {name!r} is not supported; supported are {', '.join(SUPPORTED)}")
        try:
            heads = config["num_attention_heads"]
            return cls(
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
        tied = head_is_tied(stored_tensors(folder))
        return architecture if tied is None else replace(architecture, tied=tied)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * q + 2 * kv) + (q + 2 * kv if self.qkv_bias else 0)
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + norms + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; a tied LM head counts once."""
        outer = self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden
        return self.layers * self.layer_parameters + outer
