"""Families of models that are trained and served, and why others are not; no torch.

A family is served because each of its weights sits in a module that computes every token by itself (a linear layer, a
norm, an embedding, experts), and tokens meet in attention alone, which has no weights: so tokens of several runs can
share a batch, each going through its own run's modules.
"""

from dataclasses import dataclass
from typing import Any, Literal

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone. Others (dynamic, longrope) depend on the length of the
sequence too, which engine and trainer see in different pieces."""


@dataclass(frozen=True)
class Family:
    """Differences of a family's decoder block from Llama's, by which its weights are named and counted."""

    model_type: str
    """Name by which transformers finds the classes."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases whatever config.json says."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """Norms of queries and keys: none, over each head, or over all heads together."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    """Norms of the hidden size in a block, in order."""
    fused: bool = False
    """Whether files hold q, k and v in one weight, and gate and up in another."""
    experts: bool = False
    """Whether a router chooses some of several MLPs for each token."""
    windows: Literal["none", "all", "pattern"] = "none"
    """Attention over a sliding window: in no block, in all where config.json has `sliding_window`, or in those that
    `layer_types` names."""
    pattern: int = 0
    """Number of blocks of which the last attends to everything, where config.json has no `layer_types`."""
    activation: tuple[str, str] = ("hidden_act", "silu")
    """Field of the MLP's activation in config.json, and its one value."""
    ropes: tuple[str, ...] = ROPE_TYPES
    """Rotary embeddings that transformers and vLLM compute alike."""

    @property
    def fused_on_gpus(self) -> bool:
        """Whether norms, rotary embeddings and MLP have kernels that pass over memory once on GPUs (`fused_gpu`)."""
        return self.activation[1] == "silu" and not self.fused and not self.experts

    @property
    def static_slots(self) -> bool:
        """Whether the engine can serve it under CUDA graphs: no experts, nor norms over all heads, for which vLLM runs
        transformers' own blocks."""
        return not self.experts and self.qk_norm != "projection"


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama"),
    "MistralForCausalLM": Family("mistral", windows="all"),
    "Phi3ForCausalLM": Family("phi3", fused=True, windows="all", ropes=("default",)),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm="head"),
    "Olmo2ForCausalLM": Family(
        "olmo2", qk_norm="projection", norms=("post_attention_layernorm", "post_feedforward_layernorm")
    ),
    "Olmo3ForCausalLM": Family(
        "olmo3",
        qk_norm="projection",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        windows="pattern",
        pattern=4,
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3_text",
        qk_norm="head",
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        windows="pattern",
        pattern=6,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
    ),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", qk_norm="head", experts=True),
}
"""Supported families by architecture, the class of transformers that config.json names."""

STATE_SPACE = (
    "mamba", "rwkv", "xlstm", "bamba", "jamba", "zamba", "falcon_h1", "recurrent", "nemotron_h", "lfm2", "hybrid",
    "next", "qwen3_5", "minimax_text", "minimax_m1", "kimi_linear", "gated_delta", "plamo2", "plamo3", "samba",
    "phi4flash", "hyena", "retnet",
)  # fmt: skip
"""Parts of the model_type of models with layers that carry a state from token to token."""
STATES = ("state_size", "ssm_cfg", "d_state", "mamba_d_state", "mamba_num_heads", "ssm_state_size", "lru_width",
          "linear_num_key_heads", "linear_attn_config", "conv_L_cache")  # fmt: skip
"""Fields of such layers in config.json."""
OF_IMAGES = ("vision_", "image_", "video_", "audio_", "speech_", "mm_vision_", "thinker_", "img_processor",
             "embd_layer")  # fmt: skip
"""Beginnings of the fields of models that see or hear."""
DIFFUSION = ("llada", "dream", "diffu", "sdar")
"""Parts of the model_type of models that fill in masked tokens."""
NO_NEXT_TOKEN = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
                 "RewardModel", "EncoderModel")  # fmt: skip
"""Ends of the names of classes that give something else than the next token."""


def refusal(config: dict[str, Any], name: str) -> str:
    """Say why the model of a config.json, of an architecture that is not in FAMILIES, cannot be swept."""
    kind = str(config.get("model_type", "")).lower()
    types = config.get("layer_types") if isinstance(config.get("layer_types"), list) else []
    foreign = sorted({str(t) for t in types} - {"full_attention", "sliding_attention"})
    if name == "none":
        reason = "config.json names none in 'architectures'"
    elif config.get("is_encoder_decoder") or kind in ("t5", "mt5", "bart", "whisper") or "encoder" in config:
        reason = "it is an encoder-decoder, whose prompts and responses go through different blocks; take a decoder"
    elif any(field.startswith(OF_IMAGES) for field in config) or name.endswith(
        ("VLForConditionalGeneration", "VForCausalLM")
    ):
        reason = "it sees images or hears; rewards and prompts here are text. Take the text-only model of its family"
    elif any(part in kind for part in STATE_SPACE) or any(config.get(f) for f in STATES) or foreign:
        what = f" ({', '.join(foreign)})" if foreign else ""
        reason = (
            f"it has state-space, recurrent or linear-attention layers{what}, whose weights act on whole sequences, "
            "not token by token, so that runs cannot share a batch; take a model with attention alone"
        )
    elif config.get("kv_lora_rank"):
        reason = "its attention (multi-head latent) has weights of its own, so that runs cannot share a batch"
    elif kind == "gpt_oss":
        reason = "its attention has weights of its own (sinks), so that runs cannot share a batch"
    elif "mask_token_id" in config or any(part in kind for part in DIFFUSION):
        reason = "it is a diffusion model, which fills in masked tokens in any order; take an autoregressive one"
    elif name.endswith(NO_NEXT_TOKEN) or f"{name.removesuffix('Model')}ForCausalLM" in FAMILIES:
        reason = "it gives no next token (it encodes, classifies or scores); take a causal language model"
    else:
        reason = "engine and trainer have not been shown to compute it alike"
    return f"architecture {name!r} is not supported: {reason}. Supported are {', '.join(FAMILIES)}"
