"""The tiny model on its way to a node that has not made it."""

from workers.tiny import BaseModel


def test_a_node_without_the_model_gets_it_whole_and_once(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"\x00\x01")
    packed = BaseModel.packed(made)
    other = tmp_path / "another node/models/key"
    there = BaseModel(str(other), packed.files)
    assert there.here() == str(other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == {
        "config.json": b"{}", "model.safetensors": b"\x00\x01",
    }  # fmt: skip
    (other / "model.safetensors").write_bytes(b"its own")
    assert there.here() == str(other) and (other / "model.safetensors").read_bytes() == b"its own"
    assert [path.name for path in other.parent.iterdir()] == ["key"]


def test_a_path_that_every_node_can_read_stays_as_it_is():
    assert BaseModel("Qwen/Qwen3-1.7B-Base").here() == "Qwen/Qwen3-1.7B-Base"
