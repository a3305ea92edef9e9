"""What a model is stands in its weights: tying, damage, missing parts, whatever config.json says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.checkpoint import (
    EMBEDDING,
    HEAD,
    head_is_tied,
    refuse_non_finite,
    shards,
    stored_tensors,
)
from layersweep.policies.selection import Selection
from tests.conftest import save_random_qwen3


@pytest.fixture
def folder(tmp_path):
    """A tied model of vocabulary 32, as transformers saves it: without the head."""
    save_random_qwen3(tmp_path, vocabulary=32, heads=2, kv_heads=1)
    return tmp_path


def change(folder, says_tied: bool, head: str) -> torch.Tensor:
    """Let config.json and the file say so; the weight that the head multiplies with."""
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": says_tied}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    assert HEAD not in weights
    if head == "same":
        weights[HEAD] = weights[EMBEDDING].clone()
    elif head == "other":
        weights[HEAD] = weights[EMBEDDING].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights.get(HEAD, weights[EMBEDDING])


@pytest.mark.parametrize("says_tied", [True, False])
@pytest.mark.parametrize(("head", "tied"), [("absent", True), ("same", True), ("other", False)])
def test_tying_is_read_from_the_weights(folder, says_tied, head, tied):
    """vllm PR 51665 has checkpoints that store a tied head (Qwen3-0.6B is one). Plan, trainer and base model all see
    one weight where the values are the same or one is absent, and two where they differ; the logits are those of the
    stored weights."""
    from layersweep.policies.model.trunk import Policy, Trunk

    weight = change(folder, says_tied, head)
    assert head_is_tied(stored_tensors(folder)) is tied
    shape = Architecture.from_folder(folder)
    assert shape.tied is tied
    trunk = Trunk.load(str(folder), "float32")
    policy = Policy(trunk, Selection.full())
    assert (HEAD in policy.named_weights()) is not tied
    assert sum(p.numel() for p in policy.parameters()) == shape.parameters
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = trunk.model.model(ids).last_hidden_state @ weight.T
        torch.testing.assert_close(trunk.model(ids).logits, expected, rtol=0, atol=1e-5)


def test_a_folder_without_weights_leaves_it_to_the_config(folder):
    (folder / "model.safetensors").unlink()
    assert head_is_tied(stored_tensors(folder)) is None
    assert Architecture.from_folder(folder).tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found(folder, dtype, value):
    weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    refuse_non_finite(folder)
    weights["model.layers.2.mlp.up_proj.weight"][5, 7] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="layers.2.mlp.up_proj.weight in .*model.safetensors holds NaN or infinite"):
        refuse_non_finite(folder)


def test_the_largest_finite_values_are_fine(tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        limits = torch.finfo(dtype)
        save_file({"w": torch.tensor([limits.max, limits.min, 0.0], dtype=dtype)}, tmp_path / f"{dtype}.safetensors")
    refuse_non_finite(tmp_path)


def test_files_that_are_not_what_they_should_be_are_named(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="model.safetensors is cut off"):
        stored_tensors(folder)
    path.write_bytes(content[:5])
    with pytest.raises(ValueError, match="no safetensors file, or is cut off"):
        stored_tensors(folder)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ValueError, match="Git LFS pointer.*git lfs pull"):
        Architecture.from_folder(folder)


def test_a_shard_that_is_missing_is_named(folder):
    index = {"weight_map": {EMBEDDING: "model-00001-of-00002.safetensors", HEAD: "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        shards(folder)
