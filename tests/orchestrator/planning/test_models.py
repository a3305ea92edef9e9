"""Model folders as people have them: each is planned.

Of many kinds: 32k positions, tied (with its head stored too), revisions of a hub model, added tokens with rows, shards,
the hub's cache of links, bfloat16 on a CPU, a sliding window that is off. What runs compute from them is tested with
engine and trainer.
"""

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers import families
from tests.helpers.model_folders import VOCABULARY, add_token, edit_weights, make, of_family, plan


def as_hub_cache(folder: Path) -> Path:
    """The folder as the hub's cache keeps it: a snapshot of links to files that are named by their hash."""
    blobs, snapshot = folder.parent / "models--a--b/blobs", folder.parent / "models--a--b/snapshots/0123"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


RIGHT = {
    "qwen3": {},
    "qwen2 with its biases": {"family": "qwen2"},
    "llama": {"family": "llama"},
    "32k positions": {"max_position_embeddings": 32768},
    "tied": {"tie_word_embeddings": True},
    "sharded": {"shard": "20KB"},
    "bfloat16": {"dtype": torch.bfloat16},
    "sliding window off": {"use_sliding_window": False, "sliding_window": 16},
    "more rows than tokens": {"vocab_size": VOCABULARY + 40},
}


@pytest.mark.parametrize("name", RIGHT)
def test_models_that_are_right(tmp_path, name):
    found = plan(make(tmp_path / "model", **RIGHT[name]))
    assert found.architecture.layers == 2
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > (5 if name == "sharded" else 0)
    # The engine takes a prompt in one pass of 8,192 tokens on a CPU.
    assert found.window == (8192 if name == "32k positions" else 256)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_further_families_are_right(tmp_path, family):
    assert plan(of_family(tmp_path / "model", family)).architecture.layers == 4


def test_a_cache_of_links_is_right(tmp_path):
    assert plan(as_hub_cache(make(tmp_path / "model"))).architecture.layers == 2


def test_a_tied_model_that_stores_its_head_too_is_right(tmp_path):
    """axolotl #3959."""
    folder = make(tmp_path / "model", tie_word_embeddings=True)
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert plan(folder).architecture.layers == 2


def test_tokens_that_were_added_and_have_rows_are_right(tmp_path):
    """The embedding was resized for them: 40 rows more than the characters' tokens."""
    folder = make(tmp_path / "model", vocab_size=VOCABULARY + 40)
    add_token(folder)
    assert plan(folder).architecture.vocabulary == VOCABULARY + 40


@pytest.mark.parametrize("revision", [None, "older"])
def test_of_a_hub_model_the_revision_is_planned_that_was_asked_for(tmp_path, monkeypatch, revision):
    """open-r1 #85, transformers #27923. The hub's cache has two commits; 2 layers in one, and 3 in the other."""
    repository = tmp_path / "models--someone--some-model"
    commits = {"main": "a" * 40, "older": "b" * 40}
    for layers, (name, commit) in enumerate(commits.items(), start=2):
        make(repository / "snapshots" / commit, num_hidden_layers=layers)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("layersweep.workers.startup.model_source.hub_resolves", lambda: False)
    model = {"path": "someone/some-model"} | ({"revision": revision} if revision else {})
    found = plan(tmp_path / "model", model=model)
    assert found.architecture.layers == (3 if revision else 2)
    assert found.source.revision == commits[revision or "main"]
