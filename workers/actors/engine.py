"""The rollout engine as a Ray actor."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.types import Completions, Pushed, Sampling
from layersweep.workers.startup.tiny_model import ModelSource
from layersweep.workers.storage.files import located

if TYPE_CHECKING:
    from layersweep.policies.model.tensor_transport import TransportTensors
    from layersweep.workers.transport.weight_transfer import WeightManifest


class Engine:
    """One vLLM engine for all runs that the driver deals out to it. Async: many calls wait at the same time.

    Importing vLLM takes most of its start-up, so the actor is created first and told its model when that exists.
    """

    def __init__(self, number: int = 0):
        self.number = number
        import layersweep.rollout.engine.engine  # noqa: F401

    def __repr__(self) -> str:
        return f"Engine({self.number})"

    async def start(
        self, model: ModelSource, architecture: str, config: RolloutConfig, dtype: str, seed: int, whole: bool
    ) -> tuple[str, str]:
        """Load the base model and check every routed path against a plain forward; `whole`: runs of the whole model
        too. Returns who did, and where."""
        from layersweep.rollout.engine.engine import RolloutEngine
        from layersweep.rollout.engine.selfcheck import check
        from layersweep.workers.transport.weight_transfer import WeightReceiver

        from .engine_metrics import EngineGauges
        from .shared_gpu import whereabouts

        self.gauges = EngineGauges(self.number)
        self.inlet = WeightReceiver()
        self.spans, path = config.tensor_parallel_size, model.here()
        self.engine = await asyncio.to_thread(RolloutEngine, path, architecture, config, dtype, seed)
        await asyncio.to_thread(check, self.engine, path, dtype, whole)
        return f"Engine-{self.number}", whereabouts()

    async def generate(
        self, run: str | None, version: int, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling
    ) -> Completions:
        """Responses of `run` (None: base); see RolloutEngine.generate."""
        with self.gauges.call():
            return await asyncio.wrap_future(self.engine.generate(run, version, prompts, seeds, sampling))

    async def device(self) -> str:
        """The GPU of this engine, or cpu; `several` with tensor parallelism."""
        from layersweep.policies.model.tensor_transport import device_name

        return device_name() if self.spans == 1 else "several"

    async def push(self, run: str, version: int, weights: "TransportTensors | WeightManifest") -> Pushed:
        """Serve a run from these weights, which come straight from the trainer."""
        import torch

        from layersweep.policies.model.tensor_transport import to_tensors
        from layersweep.workers.transport.weight_transfer import WeightManifest

        here = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if isinstance(weights, WeightManifest):
            tensors = await asyncio.to_thread(self.inlet.take, run, weights, here)
        else:
            tensors = to_tensors(weights, here)
        return await asyncio.wrap_future(self.engine.push(run, version, tensors))

    async def load(self, run: str, version: int, path: str) -> Pushed:
        """Serve a run from the safetensors file that its trainer left at the end."""
        from safetensors.torch import load

        filesystem, place = located(path)
        weights = load(await asyncio.to_thread(filesystem.cat_file, place))
        return await asyncio.wrap_future(self.engine.push(run, version, weights))

    async def sleep(self) -> None:
        """Leave the GPU to the trainers on it; see RolloutEngine.sleep."""
        await asyncio.wrap_future(self.engine.sleep())

    async def wake(self) -> None:
        """Take it again."""
        await asyncio.wrap_future(self.engine.wake())

    async def stuck_for(self) -> float:
        """Seconds without a finished step although there is work; see RolloutEngine.stuck_for."""
        return self.engine.stuck_for()

    async def drop(self, run: str) -> None:
        self.inlet.forget(run)
        await asyncio.wrap_future(self.engine.drop(run))

    async def stats(self) -> dict[str, Any]:
        engine = self.engine
        batching = f"{'mixed' if engine.batching.mixed else 'swap'} ({engine.batching.reason})"
        return {"tokens": engine.tokens, "cpu_seconds": engine.cpu_seconds, "batching": batching}
