"""Fields of a config.json with which engine, trainer and transformers would compute different models."""

import pytest

from layersweep.policies.model.architecture import Architecture, unsupported_fields
from layersweep.policies.model.known_models import KNOWN_MODELS

SIZES = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "vocab_size": 48}
LLAMA, QWEN2, QWEN3 = ({"architectures": [f"{name}ForCausalLM"]} | SIZES for name in ("Llama", "Qwen2", "Qwen3"))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, "use_sliding_window"),
        (QWEN3 | {"use_sliding_window": True, "max_window_layers": 0}, "use_sliding_window"),
        (LLAMA | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"], "sliding_window": 8}, "layer_types"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type"),
        (LLAMA | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type"),
        (QWEN3 | {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type"),
        (QWEN2 | {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}, "rope_scaling.mrope_section"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA | {"attention_bias": True}, "attention_bias"),
        (QWEN3 | {"attention_bias": True}, "attention_bias"),
        (LLAMA | {"mlp_bias": True}, "mlp_bias"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA | {"logit_scale": 0.5}, "logit_scale"),
        (QWEN2 | {"dual_chunk_attention_config": {"chunk_size": 64}}, "dual_chunk_attention_config"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_a_model_that_would_be_another_one_is_refused_by_its_field(config, field):
    with pytest.raises(ValueError, match=f"^config.json: {field}: "):
        Architecture.from_config(config)


@pytest.mark.parametrize(
    "config",
    [
        *KNOWN_MODELS.values(),
        QWEN2 | {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 2},
        QWEN2 | {"attention_bias": True},
        QWEN3 | {"attention_bias": False, "rope_scaling": None, "layer_types": ["full_attention"] * 4},
        LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "hidden_act": "silu", "mlp_bias": False},
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}},
        QWEN3 | {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    ],
)
def test_models_that_are_computed_alike_pass(config):
    assert unsupported_fields(config) == {}
