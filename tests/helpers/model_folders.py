"""Small random models in ordinary folders, with a tokenizer of single characters."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from layersweep.workers.startup.tiny_model_training import character_tokenizer

ALPHABET = "0123456789+?Whatis "
VOCABULARY = len(set(ALPHABET)) + 2
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256,
    "tie_word_embeddings": False, "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %}?{% endif %}"


def make(
    folder: Path, family: str = "qwen3", template: str | None = TEMPLATE, dtype=torch.float32, shard="5GB", **sizes
):
    """A random model with a tokenizer of single characters; its folder."""
    torch.manual_seed(0)
    config, model = FAMILIES[family]
    model(config(**(SIZES | sizes))).to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
