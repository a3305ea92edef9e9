"""The shape of a cluster as a user writes it for a plan: `8xH200`, `4x8xH100`, `2xA100-40GB`."""

import re
from dataclasses import dataclass

from layersweep.orchestrator.spec.errors import SpecError


@dataclass(frozen=True)
class GpuKind:
    """Peak figures of a device."""

    name: str
    flops: dict[str, float]
    """Dense FLOPs per second by dtype (no sparsity, float32 without TF32)."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: float
    """Bytes of memory, as the driver reports them: up to 7 % above the round figure of the product's name."""


def _gpu(name: str, bfloat16: float, float32: float, bandwidth: float, mebibytes: int) -> GpuKind:
    return GpuKind(f"NVIDIA {name}", {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}, bandwidth * 1e9,
               mebibytes * 2**20)  # fmt: skip


# TFLOP/s and GB/s: NVIDIA's data sheets of the H200, H100 and A100 in their SXM form, L40S and L4. Where these state
# tensor cores "with sparsity", half of it. MiB: what nvidia-smi reports as memory.total
# (collected at thundergolfer.com/blog/nvidia-gpu-memory-capacity).
GPUS = {
    "H200": _gpu("H200", 989, 67, 4800, 143_771),
    "H100": _gpu("H100", 989, 67, 3350, 81_559),
    "A100-80GB": _gpu("A100 80GB", 312, 19.5, 2039, 81_920),
    "A100-40GB": _gpu("A100 40GB", 312, 19.5, 1555, 40_960),
    "L40S": _gpu("L40S", 362, 91.6, 864, 46_068),
    "L4": _gpu("L4", 121, 30.3, 300, 23_034),
}
H200 = GPUS["H200"]

_FORM = re.compile(r"(?:(\d+)x)?(\d+)x([A-Za-z][\w-]*)", re.ASCII)


@dataclass(frozen=True)
class ClusterShape:
    """Nodes of equal GPUs. CPUs are not part of it: a plan takes them to be enough."""

    nodes: int
    gpus_per_node: int
    gpu: GpuKind

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def node_gpus(self) -> tuple[int, ...]:
        """GPUs of each node."""
        return (self.gpus_per_node,) * self.nodes

    def __str__(self) -> str:
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{nodes} of {self.gpus_per_node} {self.gpu.name}"


def parse_cluster(text: str) -> ClusterShape:
    """`GPUSxKIND` is one node, `NODESxGPUSxKIND` are several.

    Raises:
        SpecError: another form, no GPUs, or a kind that is not in the table.
    """
    match = _FORM.fullmatch(text)
    if not match or 0 in (int(match[1] or 1), int(match[2])):
        raise SpecError(
            [f"--cluster: {text!r} is not a cluster; write GPUSxKIND or NODESxGPUSxKIND, such as 8xH200 or 4x8xH100"]
        )
    gpu = next((gpu for kind, gpu in GPUS.items() if kind.lower() == match[3].lower()), None)
    if gpu is None:
        raise SpecError([f"--cluster: no GPU {match[3]!r} in the table; one of {', '.join(GPUS)}"])
    return ClusterShape(int(match[1] or 1), int(match[2]), gpu)
