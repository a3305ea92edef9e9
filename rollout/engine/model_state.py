"""Routing under vLLM's V2 model runner, which asks a model for the class that keeps what it knows of requests.

The runner calls, for each batch, `prepare_attn` with the way in which the batch will run, then `prepare_inputs`, and
then the model, or the replay of a CUDA graph in its place; `prepare_dummy_inputs` before a graph is captured.
"""

from typing import Any

import numpy as np
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from .row_routing import RowRouting, run_of


class RoutedModelState(DefaultModelState):
    """Model state that tells the model before each forward which rows belong to which run."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.runs: dict[str, str | None] = {}
        self.replays = 0
        """Batches that were replays of a CUDA graph."""
        self._replaying = False
        if not self.model_config.enforce_eager:
            self.model.use_slots(self.vllm_config.compilation_config.max_cudagraph_capture_size, self.device)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self.runs[new_req_data.req_id] = run_of(new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self.runs.pop(req_id, None)

    def prepare_attn(self, input_batch: Any, cudagraph_mode: CUDAGraphMode, *args: Any, **kwargs: Any) -> Any:
        self._replaying = cudagraph_mode == CUDAGraphMode.FULL
        return super().prepare_attn(input_batch, cudagraph_mode, *args, **kwargs)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        routing = None
        if self.runs:  # without a request it is a dummy batch, of vLLM's start
            runs = [self.runs[name] for name in input_batch.req_ids]  # one that is not known is not the base's
            lengths = np.diff(input_batch.query_start_loc_np[: input_batch.num_reqs + 1])
            routing = RowRouting(runs, lengths, self.device)
        self.model.routing = routing
        if slots := self.model.slots:
            slots.active = False
            if self._replaying:
                slots.fill(routing, input_batch.num_tokens_after_padding)
                self.model.hidden = None  # the model is not called, and what it returned last is not this batch's
                self.replays += 1
        self._replaying = False
        return super().prepare_inputs(input_batch, req_states)

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        self.model.routing = None
        if slots := self.model.slots:
            slots.active = True  # until the next batch
            slots.fill(None, num_tokens)
        return super().prepare_dummy_inputs(num_reqs, num_tokens)
