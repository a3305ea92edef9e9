"""The tiny model's configuration and its folder in the cache, without torch."""

import hashlib
import json
from pathlib import Path

from layersweep.policies.config import TinyModel
from layersweep.policies.strict import StrictModel

from .model_cache import cache_root

RECIPE = 1
"""Part of the cache key; raise it when tiny_model_training.py makes another model of the same settings."""


def tiny_config(model: TinyModel, vocabulary: int) -> dict:
    """Return the Hugging Face configuration of a tiny model, as plain data."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }


def cache_folder(model: TinyModel, task: StrictModel) -> Path:
    """Return the folder of the model of this recipe in the cache."""
    shown = task.demonstrated if hasattr(type(task), "demonstrated") else task.model_dump(mode="json")
    recipe = json.dumps([RECIPE, model.model_dump(mode="json"), shown], sort_keys=True)
    return cache_root() / hashlib.sha256(recipe.encode()).hexdigest()[:20]
