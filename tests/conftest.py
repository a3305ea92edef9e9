import os
import sys

# Before torch, vLLM and DeepSpeed are imported: as the sweep itself sets them.
from layersweep.workers.startup.environment import worker_environment

os.environ.update(worker_environment(gpu=False))

import pytest  # noqa: E402


def save_random_qwen3(folder, vocabulary: int, heads: int, kv_heads: int, tied: bool = True) -> str:
    """A random 4-layer Qwen3 (hidden 64), saved as an ordinary folder; its path."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=32, tie_word_embeddings=tied, initializer_range=0.15,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_folder_of_another_test(tmp_path_factory):
    """Code of the user's own leaves its folder on the path; the next test may have a module of the same name."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(base)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Vocabulary 32, two heads over one KV head."""
    return save_random_qwen3(tmp_path_factory.mktemp("model"), vocabulary=32, heads=2, kv_heads=1)


@pytest.fixture(scope="session")
def trunk(model_folder):
    from layersweep.policies.model.trunk import Trunk

    return Trunk.load(model_folder, "float32")


@pytest.fixture(scope="session")
def one_rank():
    """The process group of a trainer with one rank; here, since a process can have one only."""
    from layersweep.workers.training.distributed import prepare, serve_store

    store = serve_store()
    prepare(0, 1, "127.0.0.1", store.port, gpu=False)
    yield
