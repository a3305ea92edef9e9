"""Small random decoders of transformers."""

import torch
import transformers


def small(family: str) -> transformers.PreTrainedModel:
    """Random, two layers, four heads over two KV heads; norms and biases away from where they start."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
        **({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}} if family == "Llama" else {}),
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model
