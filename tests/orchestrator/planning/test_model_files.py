"""Files of a model that hold something else, or are no files, and paths that lead to no model."""

import os
import socket
from pathlib import Path

import pytest

from layersweep.orchestrator.spec.errors import SpecError
from tests.helpers.model_folders import make, plan

ODD_FILES = {
    "nested config": ("config.json", b"[" * 100_000), "UTF-16": ("config.json", b"\xff\xfe"),
    "list as header": ("model.safetensors", b"\2\0\0\0\0\0\0\0[]"),
    "no offsets": ("model.safetensors", b'\x08\0\0\0\0\0\0\0{"a":{}}'),
    "number as shard": ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_FILES)
def test_files_of_a_model_that_hold_something_else(tmp_path, name):
    file, content = ODD_FILES[name]
    folder = make(tmp_path / "model")
    (folder / file).write_bytes(content)
    with pytest.raises(SpecError, match=r"model\.path: "):
        plan(folder, run=False)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "link to nowhere"])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
     "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json", "model.safetensors.index.json"],
)  # fmt: skip
def test_what_a_model_is_loaded_from_and_is_no_file(tmp_path, monkeypatch, name, kind):
    """Readers of a pipe or of /dev/zero never end."""
    file = make(tmp_path / "model") / name
    file.unlink(missing_ok=True)
    monkeypatch.chdir(file.parent)  # the path of a socket is short
    {
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(name),
        "device": lambda: file.symlink_to("/dev/zero"),
        "link to nowhere": lambda: file.symlink_to("x"),
    }[kind]()
    with pytest.raises(SpecError, match=rf"^model\.path: .*{name}"):
        plan(file.parent, run=False)


@pytest.mark.parametrize("path", ["~nosuch/x", "x" * 300, "cut.gguf"])
def test_paths_that_lead_to_no_model(tmp_path, monkeypatch, path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if path == "cut.gguf":
        path = str(tmp_path / path)
        Path(path).write_bytes(b"GGUF")
    with pytest.raises(SpecError, match=r"model\.path: "):
        plan(tmp_path / "model", model={"path": path}, run=False)


def test_a_cache_that_cannot_be_written_is_named_before_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(SpecError, match=r"model\.path: .*cannot be written .*; set XDG_CACHE_HOME"):
        plan(tmp_path / "model", model={"path": str(tmp_path / "a.gguf")}, run=False)
