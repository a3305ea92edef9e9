"""Metrics that an engine exports to Ray (`ray_layersweep_*` in Prometheus) while it works."""

import contextlib
from collections.abc import Iterator

import ray
from ray.util.metrics import Gauge

from layersweep.workers.trackers.prometheus import LABELS


class EngineGauges:
    """Calls that wait for an engine, and the memory in use on its GPU; the label `run` is the engine's own name.

    Args:
        number: of the engine.
    """

    def __init__(self, number: int):
        sweep = ray.get_runtime_context().namespace.removeprefix("layersweep-")
        self.labels = {"sweep": sweep, "run": f"engine-{number}", "layer": ""}
        self.waiting = 0
        self.queue = Gauge("layersweep_queue_length", "Batches that are being generated or wait for it.", LABELS)
        self.memory = Gauge("layersweep_gpu_memory_bytes", "Memory in use on the engine's GPU, by any process.", LABELS)

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Count a call as waiting for the time of a `with` block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        import torch

        self.waiting += change
        self.queue.set(self.waiting, self.labels)
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            self.memory.set(total - free, self.labels)
