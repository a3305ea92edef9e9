"""The rollout engine as a Ray actor."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layersweep.policies.model.checkpoint import refuse_non_finite
from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.types import Completions, Pushed, Sampling
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.storage.files import resolve_uri

from .portable_errors import portable_errors

if TYPE_CHECKING:
    from torch import Tensor

    from layersweep.policies.model.tensor_transport import TransportTensors
    from layersweep.workers.transport.weight_transfer import WeightManifest


@portable_errors
class Engine:
    """One vLLM engine for all runs that the driver assigns to it. Async: many calls wait at the same time.

    Importing vLLM takes most of its start-up, so the actor is created first and told its model when that exists.
    """

    def __init__(self, number: int = 0):
        self.number = number
        import layersweep.rollout.engine.engine  # noqa: F401

    def __repr__(self) -> str:
        return f"Engine({self.number})"

    async def start(
        self, model: ModelSource, architecture: str, config: RolloutConfig, dtype: str, seed: int, trains_all: bool
    ) -> tuple[str, str]:
        """Load the base model and check every routed path against a plain forward.

        Args:
            model: the base, the same object for all actors.
            architecture: the first of the model config's `architectures`.
            dtype: of weights and KV cache.
            seed: of vLLM's own generators.
            trains_all: whether runs of the whole model, or of what is outside of its layers, use the engine, which is
                then checked for them too.

        Returns:
            The engine's name, and host with GPUs.
        """
        from layersweep.rollout.engine.engine import RolloutEngine
        from layersweep.rollout.engine.selfcheck import check
        from layersweep.workers.transport.weight_transfer import WeightReceiver

        from .engine_metrics import EngineGauges
        from .ray_placement import host_and_gpus

        self.gauges = EngineGauges(self.number)
        self.receiver = WeightReceiver()
        self.spans, path = config.tensor_parallel_size, await asyncio.to_thread(model.here)
        if model.revision:  # a folder was looked at before the start
            await asyncio.to_thread(refuse_non_finite, Path(path))
        trusted = model.trust_remote_code
        self.engine = await asyncio.to_thread(RolloutEngine, path, architecture, config, dtype, seed, trusted)
        await asyncio.to_thread(check, self.engine, path, dtype, trains_all, trusted)
        self.location = f"Engine-{self.number}", host_and_gpus()
        return self.location

    async def reset(self) -> tuple[str, str]:
        """Forget all runs of a sweep that has ended, for the next one; what `start` returned."""
        from layersweep.workers.transport.weight_transfer import WeightReceiver

        await asyncio.wrap_future(self.engine.reset())
        self.receiver = WeightReceiver()
        return self.location

    async def generate(
        self, run: str | None, version: int, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling
    ) -> Completions:
        """Generate responses of `run` (None: base); see RolloutEngine.generate."""
        with self.gauges.call():
            return await asyncio.wrap_future(self.engine.generate(run, version, prompts, seeds, sampling))

    async def device(self) -> str:
        """Name the GPU of this engine, or cpu; `several` with tensor parallelism."""
        from layersweep.policies.model.tensor_transport import device_name

        return device_name() if self.spans == 1 else "several"

    async def push(self, run: str, version: int, weights: "TransportTensors | WeightManifest") -> Pushed:
        """Serve a run from these weights of its trainer."""
        import torch

        from layersweep.policies.model.tensor_transport import to_tensors
        from layersweep.workers.transport.weight_transfer import WeightManifest

        on_gpu = self.spans == 1 and torch.cuda.is_available()  # vLLM's workers copy to GPUs of their own
        here = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
        if isinstance(weights, WeightManifest):
            parts = self.receiver.receive(run, weights, here)
            return await asyncio.to_thread(self.engine.push_parts, run, version, parts)
        return await self._serve(run, version, to_tensors(weights, here))

    async def load(self, run: str, version: int, path: str) -> Pushed:
        """Serve a run from the safetensors file that its trainer wrote at the end."""
        from safetensors.torch import load

        filesystem, inner = resolve_uri(path)
        weights = load(await asyncio.to_thread(filesystem.cat_file, inner))
        return await self._serve(run, version, weights)

    async def _serve(self, run: str, version: int, weights: "dict[str, Tensor]") -> Pushed:
        """Serve a run from weights that are all in this process."""
        from layersweep.workers.transport.weight_transfer import in_parts

        if self.spans == 1:
            return await asyncio.wrap_future(self.engine.push(run, version, weights))
        # Block by block: each call copies what it sends to vLLM's workers.
        parts = ({name: weights[name] for name in names} for names in in_parts(weights))
        return await asyncio.to_thread(self.engine.push_parts, run, version, parts)

    async def sleep(self) -> None:
        """Free the GPU for the trainers on it; see RolloutEngine.sleep."""
        await asyncio.wrap_future(self.engine.sleep())

    async def wake(self) -> None:
        """Take the GPU again; see RolloutEngine.wake."""
        await asyncio.wrap_future(self.engine.wake())

    async def stuck_for(self) -> float:
        """Return the seconds without a finished step although there is work; see RolloutEngine.stuck_for."""
        return self.engine.stuck_for()

    async def drop(self, run: str) -> None:
        """Forget a run that is finished, and free its memory."""
        self.receiver.forget(run)
        await asyncio.wrap_future(self.engine.drop(run))

    async def stats(self) -> dict[str, Any]:
        """Return generated tokens, CPU seconds, and how runs are batched with the reason."""
        engine = self.engine
        batching = f"{'mixed' if engine.batching.mixed else 'swap'} ({engine.batching.reason})"
        return {"tokens": engine.tokens, "cpu_seconds": engine.cpu_seconds, "batching": batching}
