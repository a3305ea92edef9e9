"""Liger's Triton kernels on a CPU, interpreted: what `fused_gpu` makes of small decoders, as one line of JSON.

In a process of its own, because Triton decides at its import whether kernels are interpreted.
"""

import copy
import json
import os
from contextlib import nullcontext
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from triton import language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from tests.helpers.small_decoder import small  # noqa: E402

FAMILIES = ("Qwen3", "Qwen2", "Llama", "Olmo2")


def prepare() -> None:
    """Have the interpreter take what compiled kernels take: numbers as arguments, and libdevice's rsqrt."""
    convert = interpreter._implicit_cvt

    def with_floats(argument: object) -> object:
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return convert(argument)

    interpreter._implicit_cvt = with_floats
    from liger_kernel.ops import rms_norm

    def rsqrt(x: tl.tensor) -> tl.tensor:
        return tl.tensor(interpreter.TensorHandle(1 / np.sqrt(x.handle.data), x.handle.dtype), x.dtype)

    rms_norm.rsqrt = rsqrt


def with_gradients(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    logits = model(ids).logits
    torch.manual_seed(1)
    return [logits.detach(), *torch.autograd.grad(logits, list(model.parameters()), torch.randn_like(logits))]


def compared(family: str) -> dict[str, float]:
    """Largest difference of a fused decoder from transformers' own, in logits and gradients, and what is replaced."""
    from layersweep.policies.model import fused_gpu

    plain = small(family)
    fused = fused_gpu.fuse(copy.deepcopy(plain))
    ids = torch.randint(40, (1, 11))
    pairs = zip(with_gradients(plain, ids), with_gradients(fused, ids), strict=True)
    kinds = [type(module).__name__ for module in fused.modules()]
    return {
        "difference": max(float((a - b).abs().max() / a.abs().max().clamp(min=1)) for a, b in pairs),
        **{kind: kinds.count(kind) for kind in ("LigerRMSNorm", "LigerAttention", "LigerMLP")},
    }


def checked(family: str, fault: str | None) -> dict[str, object]:
    """What the comparison before a start finds, and whether the decoder was fused."""
    from layersweep.policies.model import fused_gpu
    from layersweep.policies.model.tree_attention import NAME

    def backwards(query, key, cos, sin):
        return rotate(query, key, cos, -sin)

    def without_weight(self, hidden):
        return forward(self, hidden) / self.weight

    def missing(self, hidden):
        raise RuntimeError("no compiler")

    rotate, forward = fused_gpu.LigerAttention.rotate, fused_gpu.LigerRMSNorm.forward
    faults = {
        "rotation": patch.object(fused_gpu.LigerAttention, "rotate", staticmethod(backwards)),
        "norm": patch.object(fused_gpu.LigerRMSNorm, "forward", without_weight),
        "compiler": patch.object(fused_gpu.LigerMLP, "forward", missing),
        None: nullcontext(),
    }
    model = small(family)
    model.set_attn_implementation(NAME)
    with patch.object(fused_gpu, "TOKENS", 9), faults[fault]:
        found = {} if fault == "compiler" else fused_gpu.errors(model)
        used = fused_gpu.fuse_checked(model)
    kinds = {type(module).__name__ for module in model.modules()}
    return {"used": used, "fused": any(kind.startswith("Liger") for kind in kinds), "found": found}


if __name__ == "__main__":
    prepare()
    torch.set_num_threads(1)
    print(json.dumps({
        "compared": {family: compared(family) for family in FAMILIES},
        "checked": {str(fault): checked("Qwen3", fault) for fault in (None, "rotation", "norm", "compiler")},
    }))  # fmt: skip
