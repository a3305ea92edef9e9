"""What layersweep adds to vLLM's worker process, through vLLM's `worker_extension_cls`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from . import model  # noqa: F401  registers the routed models in vLLM's worker process
from .overlay import Overlay
from .route import Route

RUN = "layersweep_run"
"""The key of a request's run in `SamplingParams.extra_args`."""


def run_of(sampling_params: Any) -> str | None:
    return (sampling_params.extra_args or {}).get(RUN)


def _forward_v1(runner: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """The V1 model runner's forward, after telling the model whose rows are whose."""
    batch = runner.input_batch
    starts = runner.query_start_loc.np[: batch.num_reqs + 1]
    runs = [run_of(runner.requests[name].sampling_params) for name in batch.req_ids]
    runner.model.route = Route(runs, np.diff(starts), runner.device)
    return forward(*args, **kwargs)


class RoutedModelState(DefaultModelState):
    """The same for the V2 model runner (GPUs with Triton), which asks the model for its state class."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.runs: dict[str, str | None] = {}

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self.runs[new_req_data.req_id] = run_of(new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self.runs.pop(req_id, None)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        runs = [self.runs.get(name) for name in input_batch.req_ids]
        lengths = np.diff(input_batch.query_start_loc_np[: input_batch.num_reqs + 1])
        self.model.route = Route(runs, lengths, self.device)
        return super().prepare_inputs(input_batch, req_states)


class OverlayWorker:
    """Methods that vLLM's worker gets; called with `collective_rpc`, on every tensor-parallel rank alike."""

    def install_routing(self) -> None:
        """Once, after the model is loaded and before the first request."""
        if not self.vllm_config.use_v2_model_runner:
            runner = self.model_runner
            runner._model_forward = partial(_forward_v1, runner, runner._model_forward)

    def push_overlay(self, run: str, version: int, weights: Mapping[str, Tensor]) -> int:
        """Serve `run` from these weights (Hugging Face names; whole blocks) from now on. Returns the bytes sent.

        They may change once this returns. Should it fail, the run has no weights here any more.
        """
        self.drop_overlay(run)  # first: a GPU then has room for as much
        overlay = Overlay.build(self.model_runner.model, version, weights)
        self.model_runner.model.overlays[run] = overlay
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies are only queued, and their source may be another process's
        return overlay.bytes

    def drop_overlay(self, run: str) -> None:
        self.model_runner.model.overlays.pop(run, None)
