"""Routing under vLLM's V2 model runner, which asks a model for the class that keeps what it knows of requests."""

from typing import Any

import numpy as np
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from .row_routing import RowRouting, run_of


class RoutedModelState(DefaultModelState):
    """Model state that tells the model before each forward which rows belong to which run."""

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
        runs = [self.runs[name] for name in input_batch.req_ids]  # one that is not known is not the base's
        lengths = np.diff(input_batch.query_start_loc_np[: input_batch.num_reqs + 1])
        self.model.routing = RowRouting(runs, lengths, self.device)
        return super().prepare_inputs(input_batch, req_states)
