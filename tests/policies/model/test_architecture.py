"""The routed engine on the other decoders that layersweep supports, each in a process of its own."""

import multiprocessing

import pytest


def _self_check(architecture: str, folder: str, out) -> None:
    import torch
    import transformers

    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.engine.selfcheck import check

    torch.manual_seed(0)
    config = getattr(transformers, architecture.replace("ForCausalLM", "Config"))(
        vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=architecture == "Qwen2ForCausalLM",
        initializer_range=0.15, max_position_embeddings=128, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = getattr(transformers, architecture)(config).float()
    with torch.no_grad():  # biases start at zero, where a bias that is dropped would not show
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    out.put(check(RolloutEngine(folder, architecture, RolloutConfig(), "float32", seed=0), folder, "float32"))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "LlamaForCausalLM"])
def test_every_routed_path_equals_a_plain_forward(architecture, tmp_path):
    """Qwen2 has biases on q, k and v and here tied embeddings; Llama has neither. The self-check compares base,
    three single layers and the full model, mixed in one batch, with transformers: within 1e-5."""
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=_self_check, args=(architecture, str(tmp_path), out))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert out.get() < 1e-5
