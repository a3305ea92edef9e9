"""Files of tensors, read by the library whose format they have."""

import io

import pytest
import torch
import xxhash
from safetensors.torch import load

from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.storage.tensor_file import write_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "rng": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 2, generator=generator).bfloat16(),
        "step": torch.tensor(7.0),
        "weight": torch.randn(4, 6, generator=generator),
        "turned": torch.randn(2, 3, generator=generator).t(),
        "part": torch.randn(10, generator=generator)[3:6],
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "wide": torch.tensor([2**40], dtype=torch.int64),
    }


def test_the_library_reads_what_was_written():
    file, tensors = io.BytesIO(), some_tensors()
    write_tensors(file, tensors)
    found = load(file.getvalue())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_no_more_than_one_tensor_is_written_at_a_time():
    """The sizes of what goes to the file: the header's, then of each tensor its bytes, wide types first."""
    sizes = []

    class Sink:
        def write(self, content):
            sizes.append(len(content))

    write_tensors(Sink(), some_tensors())
    assert sizes[1:] == [8, 0, 12, 4, 24, 96, 12, 2, 5]
    assert sizes[0] % 8 == 0


def test_a_dtype_without_a_name_is_refused():
    with pytest.raises(KeyError):
        write_tensors(io.BytesIO(), {"complex": torch.zeros(1, dtype=torch.complex64)})


def test_the_checksum_is_that_of_the_file(tmp_path):
    store = RunStore(str(tmp_path), "layer-00-seed0")
    checksum = store.write_file(3, "rank-0.safetensors", lambda file: write_tensors(file, some_tensors()))
    written = (tmp_path / "checkpoints/layer-00-seed0/step-000003/rank-0.safetensors").read_bytes()
    assert checksum == xxhash.xxh3_128_hexdigest(written)
