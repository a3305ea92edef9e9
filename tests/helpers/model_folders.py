"""Small random models in ordinary folders, with a tokenizer of single characters."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from tests.helpers import families

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


def of_family(folder: Path, family: str, **changes) -> Path:
    families.save_random(folder, family, vocab_size=VOCABULARY, **changes)
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def add_token(folder: Path) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)


def plan(folder: Path, run: bool = True, **sections) -> Plan:
    """What `run` (or `plan`) makes of a sweep of the folder over 30 sums; 10 are held out."""
    data = folder.parent / "sums.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(30)]
    if not data.exists():
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": "models",
        "model": {"type": "pretrained", "path": str(folder)},
        "task": {"type": "math", "data": {"path": str(data), "selection_share": 0.3}},
        "training": {"prompts_per_step": 2, "group_size": 2, "max_response_tokens": 64},
        "evaluation": {"suites": [{"name": "sums", "prompts": 2}]},
        "output": str(folder.parent / "runs"),
    }
    for name, section in sections.items():
        spec[name] = spec.get(name, {}) | section
    return make_plan(parse_spec(spec), fetch=run)
