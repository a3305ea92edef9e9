import os

# Before torch, vLLM and DeepSpeed are imported: as the sweep itself sets them.
from workers.environment import worker_environment

os.environ.update(worker_environment(gpu=False))

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random 4-layer Qwen3 (hidden 64, tied embeddings, vocabulary 32), saved as an ordinary folder."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, initializer_range=0.15,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def trunk(model_folder):
    from policies.trunk import Trunk

    return Trunk.load(model_folder, "float32")
