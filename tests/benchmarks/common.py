"""Models to measure on, and how a table is printed."""

import os
import statistics
import tempfile
from collections.abc import Sequence

from workers.environment import worker_environment

os.environ.update(worker_environment(gpu=False))


def random_model(layers: int, hidden: int, heads: int, vocabulary: int = 32, intermediate: int | None = None) -> str:
    """A folder with a random Qwen3 of this shape (head_dim 32 or 64, one KV head for every two heads, tied)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate or 2 * hidden,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        head_dim=hidden // heads, tie_word_embeddings=True, initializer_range=0.05, max_position_embeddings=1024,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    folder = tempfile.mkdtemp(prefix="layersweep-benchmark-")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Markdown, so that it can be pasted where results are kept."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.3g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
