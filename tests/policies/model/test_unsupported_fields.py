"""Fields of a config.json with which engine, trainer and transformers would compute different models."""

import pytest

from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.config_fields import unsupported_fields
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
        (LLAMA | {"compression_config": {"format": "int-quantized"}}, "compression_config"),
        (LLAMA | {"quantization": {"bits": 4}}, "quantization"),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, "architectures"),
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


MISTRAL, PHI3, OLMO3, GEMMA3, MOE = (
    {"architectures": [f"{name}ForCausalLM"]} | SIZES for name in ("Mistral", "Phi3", "Olmo3", "Gemma3", "Qwen3Moe")
)
OF_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (MISTRAL | {"sliding_window": 8, "layer_types": ["full_attention"] * 4}, "layer_types"),
        (PHI3 | {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rope_scaling.type"),
        (PHI3 | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.type"),
        (PHI3 | {"partial_rotary_factor": 0.75}, "partial_rotary_factor"),
        (OLMO3 | {"sliding_window": 8, "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        (
            OLMO3 | {"sliding_window": 8, "rope_parameters": {"sliding_attention": {"rope_type": "dynamic"}}},
            "rope_parameters.sliding_attention.rope_type",
        ),
        (GEMMA3 | {"sliding_window": 8, "final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (GEMMA3 | {"sliding_window": 8, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3 | {"sliding_window": 8, "hidden_activation": "silu"}, "hidden_activation"),
        (MOE | OF_EXPERTS | {"mlp_only_layers": [0]}, "mlp_only_layers"),
        (MOE | OF_EXPERTS | {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        (MOE | OF_EXPERTS | {"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ],
)
def test_of_further_families_too(config, field):
    with pytest.raises(ValueError, match=f"^config.json: {field}: "):
        Architecture.from_config(config)


def test_sliding_blocks_are_counted():
    """Mistral in all blocks; Gemma 3 in five of six, OLMo 3 in three of four, or where `layer_types` says."""
    assert Architecture.from_config(MISTRAL).sliding_layers == 0
    assert Architecture.from_config(MISTRAL | {"sliding_window": 8}).sliding_layers == 4
    twelve = {"sliding_window": 8, "num_hidden_layers": 12}
    assert Architecture.from_config(GEMMA3 | twelve).sliding_layers == 10
    assert Architecture.from_config(GEMMA3 | twelve | {"sliding_window_pattern": 2}).sliding_layers == 6
    assert Architecture.from_config(OLMO3 | twelve).sliding_layers == 9
    types = ["full_attention"] * 11 + ["sliding_attention"]
    olmo3 = Architecture.from_config(OLMO3 | twelve | {"layer_types": types})
    assert (olmo3.sliding_layers, olmo3.window) == (1, 8)
    # 11 blocks attend to all 20 positions, one to 8.
    assert olmo3.attended(20) == pytest.approx((11 * 20 + 8) / 12)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 16}, "state-space"),
        ({"architectures": ["Mamba2ForCausalLM"], "state_size": 128}, "state-space"),
        ({"architectures": ["JambaForCausalLM"], "model_type": "jamba", "mamba_d_state": 16}, "state-space"),
        ({"architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1"}, "state-space"),
        ({"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
          "layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"architectures": ["OlmoHybridForCausalLM"], "model_type": "olmo_hybrid"}, "recurrent"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True},
         "encoder-decoder"),
        ({"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}, "encoder-decoder"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}}, "images"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"hidden_size": 1}}, "images"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"hidden_size": 1}}, "images"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}, "latent"),
        ({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}, "weights of its own .sinks."),
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "shown to compute it alike"),
        ({"architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2"}, "shown to compute it alike"),
        ({"architectures": ["LLaDAModelLM"], "model_type": "llada"}, "it is a diffusion model"),
        ({"architectures": ["AnyForCausalLM"], "model_type": "any", "mask_token_id": 7}, "it is a diffusion model"),
        ({"architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "thinker_config": {}}, "hears"),
        ({"architectures": ["UltravoxModel"], "model_type": "ultravox", "audio_model_id": "x"}, "hears"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "it gives no next token"),
        ({"architectures": ["Qwen3Model"], "model_type": "qwen3"}, "it gives no next token"),
    ],
)  # fmt: skip
def test_other_architectures_are_refused_by_name_with_the_reason(config, reason):
    with pytest.raises(ValueError, match=rf"^architecture '{config['architectures'][0]}' is not supported: .*{reason}"):
        Architecture.from_config(config)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("adapter_config.json", ", but an adapter; merge it into its base model"),
        ("q8.gguf", "; name the GGUF file itself, such as /.*/q8.gguf$"),
        ("a.txt", "it is not a Hugging Face model folder$"),
    ],
)
def test_a_folder_of_something_else(tmp_path, file, says):
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=says):
        Architecture.from_folder(tmp_path)
