"""Writing of safetensors files tensor by tensor: never a second copy of the whole in memory.

The library's own `save` needs the file as one bytes object, and `save_file` a local path with all tensors on the host.
"""

import json
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The format's names (https://huggingface.co/docs/safetensors, Format)."""


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device in the safetensors format; wide types first, so that all of them are aligned.

    Raises:
        KeyError: a dtype that checkpoints do not have.
        OSError: it could not be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
