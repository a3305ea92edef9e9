"""Fields of a config.json that decide what a model computes, and which of their values are supported."""

import json
import math
from typing import Any

from .families import FAMILIES, Family

DTYPES = ("float32", "bfloat16", "float16")
"""Types of weights that are trained and served, as config.json names them."""
_ROPE_NUMBERS = ("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
                 "beta_fast", "beta_slow", "attention_factor")  # fmt: skip


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


def sliding_blocks(config: dict[str, Any], layers: int) -> list[bool]:
    """Return which blocks of a supported config.json attend over a sliding window."""
    family = FAMILIES[config["architectures"][0]]
    if family.windows == "none" or (family.windows == "all" and config.get("sliding_window") is None):
        return [False] * layers
    if family.windows == "all":
        return [True] * layers
    types, every = config.get("layer_types"), config.get("sliding_window_pattern", family.pattern)
    if isinstance(types, list):
        return [kind == "sliding_attention" for kind in types]
    return [bool((k + 1) % every) for k in range(layers)]


def unsupported_fields(config: dict[str, Any]) -> dict[str, str]:
    """Name the fields of a config.json with which engine, trainer and transformers would compute different models.

    Args:
        config: the content of a config.json, of a supported architecture.

    Returns:
        By field, why it is not supported and what can be done; empty where all is well.
    """
    found: dict[str, str] = {}
    family = FAMILIES[config["architectures"][0]]
    found |= _unsupported_windows(config, family)
    found |= _unsupported_ropes(config, family)
    activation, only = family.activation
    off = {"partial_rotary_factor": 1.0, activation: only, "is_causal": True, "mlp_bias": False, "logit_scale": 1.0}
    off |= {"final_logit_softcapping": None, "attn_logit_softcapping": None, "use_bidirectional_attention": False}
    if family.experts:
        off |= {"mlp_only_layers": [], "decoder_sparse_step": 1, "shared_expert_intermediate_size": 0}
    if not family.qkv_bias:  # which has biases on q, k and v and ignores this field
        off["attention_bias"] = False
    for field, value in off.items():
        if config.get(field) not in (None, value):
            found[field] = f"{json.dumps(config[field])} is not supported, only {json.dumps(value)}"
    found |= _not_above_0(config, "rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar")
    if not isinstance(config.get("tie_word_embeddings", False), bool | None):
        found["tie_word_embeddings"] = f"{json.dumps(config['tie_word_embeddings']):.50} is neither true nor false"
    if config.get("model_type") not in (None, family.model_type):
        found["model_type"] = (
            f"{json.dumps(config['model_type']):.50} is not {family.model_type}, which the architecture is"
        )
    for field in ("dtype", "torch_dtype"):
        if config.get(field) is not None and str(config[field]).removeprefix("torch.") not in DTYPES:
            found[field] = f"{json.dumps(config[field]):.50} is not supported; supported are {', '.join(DTYPES)}"
    try:
        end_tokens(config)
    except ValueError as error:
        found["eos_token_id"] = str(error)
    if config.get("dual_chunk_attention_config"):
        found["dual_chunk_attention_config"] = "is not supported; without it the model attends to everything"
    for field in ("quantization_config", "compression_config", "quantization"):
        if config.get(field) is not None:
            found[field] = "is not supported: quantized weights cannot be trained; take the original model"
    return found


def _not_above_0(settings: dict[str, Any], *fields: str) -> dict[str, str]:
    """Name those of the fields that are there and no numbers above 0."""
    wrong = {}
    for field in fields:
        value = settings.get(field, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            wrong[field] = f"{json.dumps(value):.50} is no number above 0"
    return wrong


def _unsupported_windows(config: dict[str, Any], family: Family) -> dict[str, str]:
    """Name the settings of attention over sliding windows that are not supported."""
    if config.get("use_sliding_window", False) and config.get("sliding_window", 4096) is not None:
        return {
            "use_sliding_window": "attention over a sliding window is not supported in this family; where no prompt "
            "with its response is longer than the window, set it to false, which computes the same"
        }
    every = config.get("sliding_window_pattern", 1)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        return {"sliding_window_pattern": f"{json.dumps(every):.50} is no whole number from 1"}
    types = config.get("layer_types") or []
    known = {"full_attention", "sliding_attention"} if family.windows == "pattern" else {"full_attention"}
    if not isinstance(types, list) or not known.issuperset(map(str, types)):
        return {"layer_types": f"has other layers than {' and '.join(sorted(known))}, which are not supported"}
    if types and family.windows == "pattern" and len(types) != config.get("num_hidden_layers"):
        return {"layer_types": f"names {len(types)} layers, and num_hidden_layers is another number"}
    if types and family.windows == "all" and config.get("sliding_window") is not None:
        return {"layer_types": "is ignored beside sliding_window by one of those that compute it; leave one out"}
    return {}


def _unsupported_ropes(config: dict[str, Any], family: Family) -> dict[str, str]:
    """Name the settings of rotary embeddings that are not supported."""
    found: dict[str, str] = {}
    for field in ("rope_parameters", "rope_scaling"):
        ropes = {field: config.get(field) or {}}
        if family.windows == "pattern" and field == "rope_parameters":  # a table for each kind of block
            kinds = ropes[field] if isinstance(ropes[field], dict) else {}
            ropes |= {f"{field}.{kind}": kinds.get(kind) or {} for kind in ("full_attention", "sliding_attention")}
        for where, rope in ropes.items():
            if not isinstance(rope, dict):
                found[where] = f"{json.dumps(rope):.50} is no object of settings"
                continue
            kind = "rope_type" if "rope_type" in rope else "type"
            if rope.get(kind, "default") not in family.ropes:
                found[f"{where}.{kind}"] = (
                    f"{json.dumps(rope[kind])} is not supported; supported are {', '.join(family.ropes)}"
                )
            if "mrope_section" in rope:
                found[f"{where}.mrope_section"] = "is for images, which are not supported"
            found |= {f"{where}.{name}": reason for name, reason in _not_above_0(rope, *_ROPE_NUMBERS).items()}
            if rope.get("partial_rotary_factor", 1.0) != 1.0:
                found[f"{where}.partial_rotary_factor"] = "other than 1 is not supported"
    return found
