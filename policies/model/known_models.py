"""Shapes of the study's models, from their public config.json files, for plans where the hub is out of reach."""

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "max_position_embeddings": 32768}


def _sizes(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, tied: bool) -> dict:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    }


KNOWN_MODELS: dict[str, dict] = {
    "Qwen/Qwen3-1.7B-Base": _QWEN3 | _sizes(28, 2048, 6144, 16, 8, tied=True),
    "Qwen/Qwen3-4B-Base": _QWEN3 | _sizes(36, 2560, 9728, 32, 8, tied=True),
    "Qwen/Qwen3-8B-Base": _QWEN3 | _sizes(36, 4096, 12288, 32, 8, tied=False),
    "Qwen/Qwen2.5-Math-1.5B": _QWEN2 | _sizes(28, 1536, 8960, 12, 2, tied=True) | {"max_position_embeddings": 4096},
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN2 | _sizes(28, 1536, 8960, 12, 2, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _QWEN2 | _sizes(36, 2048, 11008, 16, 2, tied=True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _QWEN2
    | _sizes(28, 3584, 18944, 28, 4, tied=False)
    | {"vocab_size": 152064, "max_position_embeddings": 131072},
}
"""Fields of config.json by hub name. Qwen2's attention has biases on q, k and v, Qwen3's norms on q and k."""
