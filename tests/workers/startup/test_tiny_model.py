"""The tiny model on its way to a node that has not made it."""

import pytest

from layersweep.workers.startup.tiny_model import ModelSource, pack, unpack


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    (folder / "not a file").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x00\x01")
    return folder


def test_a_folder_arrives_whole_and_once(tmp_path, made):
    other = tmp_path / "another node/models/key"
    unpack(pack(made), other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {
        "config.json": b"{}", "model.safetensors": b"\x00\x01",
    }  # fmt: skip
    (other / "model.safetensors").write_bytes(b"its own")
    unpack(pack(made), other)  # another process was faster
    assert (other / "model.safetensors").read_bytes() == b"its own"
    assert [path.name for path in other.parent.iterdir()] == ["key"]


def test_what_is_there_already_is_not_fetched(made):
    assert ModelSource(str(made), files="no reference").here() == str(made)


def test_a_path_that_every_node_can_read_stays_as_it_is():
    assert ModelSource("Qwen/Qwen3-1.7B-Base").here() == "Qwen/Qwen3-1.7B-Base"
