"""Small random models of every supported family, with what tells them from Llama: windows shorter than the tests'
sequences, two tables of rotary embeddings, norms and biases away from where they start, experts."""

import torch
import transformers

COMMON = {
    "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.15, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
HALF_SLIDING = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, dict] = {
    "Mistral": {"sliding_window": 12, "head_dim": 32},
    "Phi3": {"sliding_window": 20},
    "Olmo2": {},
    "Olmo3": HALF_SLIDING | {"rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "full_attention": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0,
                           "original_max_position_embeddings": 64},
    }},
    "Gemma3": HALF_SLIDING | {"head_dim": 32, "query_pre_attn_scalar": 48, "tie_word_embeddings": True,
                              "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    }},
    "Qwen3Moe": {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                 "norm_topk_prob": True, "mlp_only_layers": [], "initializer_range": 0.1},
}  # fmt: skip
"""By family, what differs from COMMON; further ones than Llama, Qwen2 and Qwen3."""


def random_model(family: str, **changes) -> transformers.PreTrainedModel:
    """A random model in float32."""
    torch.manual_seed(0)
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")(config(**COMMON | FAMILIES[family] | changes)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif "mlp.gate.weight" in name:  # starts at zero, where all experts would be chosen alike
                parameter.normal_(std=1.0)
    return model


def save_random(folder, family: str, **changes) -> str:
    random_model(family, **changes).save_pretrained(folder)
    return str(folder)
