"""The tiny model's configuration, its place in the cache and its way to other nodes, all without torch."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layersweep.policies.config import TinyModel
from layersweep.policies.strict import StrictModel

from .gguf_model import gguf_folder, is_gguf
from .model_cache import cache_root, is_made, settle

RECIPE = 1
"""Part of the cache key; raise it when base_model.py makes another model of the same settings."""


def tiny_config(model: TinyModel, vocabulary: int) -> dict:
    """The Hugging Face configuration of a tiny model, as plain data."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }


def cache_folder(model: TinyModel, task: StrictModel) -> Path:
    """Folder of the model of this recipe, once made."""
    recipe = json.dumps([RECIPE, model.model_dump(mode="json"), task.model_dump(mode="json")], sort_keys=True)
    return cache_root() / hashlib.sha256(recipe.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class ModelSource:
    """A sweep's base model, as it travels to actors on other nodes.

    `path` is a folder or hub name that every node can read. Of the tiny model, which one node has made, `files` is a
    reference in Ray's object store to the content of its files by name; a reference, because Ray repeats the arguments
    of an actor that it starts again, and does not keep large ones. `chat_template` and `template_arguments` are from
    the spec's `model` section.
    """

    path: str
    files: Any = None
    chat_template: str | None = None
    template_arguments: dict[str, Any] = field(default_factory=dict)

    def here(self) -> str:
        """A folder or hub name to load from on this node; the files are written unless they are there."""
        if is_gguf(self.path):
            return str(gguf_folder(self.path))
        folder = Path(self.path)
        if self.files is None or is_made(folder):
            return self.path
        import ray

        unpack(ray.get(self.files), folder)
        return self.path


def pack(folder: Path) -> dict[str, bytes]:
    """Content of a folder's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def unpack(files: dict[str, bytes], folder: Path) -> None:
    """The inverse of `pack`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    settle(scratch, folder)
