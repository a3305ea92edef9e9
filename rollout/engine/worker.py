"""Extension of vLLM's worker process, through vLLM's `worker_extension_cls`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layersweep.policies.model.stored_weights import StoredWeights
from layersweep.policies.model.variant_weights import stack_weights

from . import model  # noqa: F401  registers the routed models in vLLM's worker process
from .overlay import EngineOverlay
from .row_routing import RowRouting, run_of


def _forward_v1(runner: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the V1 model runner's forward, after telling the model which rows belong to which run."""
    batch = runner.input_batch
    starts = runner.query_start_loc.np[: batch.num_reqs + 1]
    runs = [run_of(runner.requests[name].sampling_params) for name in batch.req_ids]
    runner.model.routing = RowRouting(runs, np.diff(starts), runner.device)
    return forward(*args, **kwargs)


class OverlayWorker:
    """Methods added to vLLM's worker; called with `collective_rpc`, on every tensor-parallel rank alike."""

    def install_routing(self) -> None:
        """Install routing; called once, after the model is loaded and before the first request."""
        self.checkpoint = StoredWeights(self.vllm_config.model_config.model)
        if not self.vllm_config.use_v2_model_runner:
            runner = self.model_runner
            runner._model_forward = partial(_forward_v1, runner, runner._model_forward)

    def push_overlay(self, run: str, version: int, weights: Mapping[str, Tensor]) -> int:
        """Serve `run` from these weights (Hugging Face names) from now on. Returns the bytes sent.

        They may change once this returns. Should it fail, the run has no weights here any more.
        """
        self.drop_overlay(run)  # first: a GPU then has room for as much
        overlay = self._copied(version, weights)
        self.model_runner.model.set_overlay(run, overlay)
        return overlay.bytes

    def extend_overlay(self, run: str, weights: Mapping[str, Tensor]) -> int:
        """Serve `run` from these weights too, beside those pushed before. Returns the bytes sent."""
        overlay = self.model_runner.model.overlays[run]
        part = self._copied(overlay.version, weights)
        self.model_runner.model.set_overlay(run, overlay.extended(part))
        return part.bytes

    def _copied(self, version: int, weights: Mapping[str, Tensor]) -> EngineOverlay:
        overlay = self.model_runner.model.builder.build(version, weights, self.checkpoint, self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies are only queued, and their source may be another process's
        return overlay

    def load_overlay(self, run: str, files: Mapping[str, float]) -> int:
        """Serve `run` from what runs trained, added up; returns the bytes that it takes.

        Args:
            files: safetensors of the runs' weights, each with the factor of its change of the base.
        """
        return self.push_overlay(run, 1, stack_weights(files, self.checkpoint))

    def drop_overlay(self, run: str) -> None:
        """Forget a run's weights, if there are any."""
        self.model_runner.model.set_overlay(run, None)
