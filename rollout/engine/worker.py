"""Extension of vLLM's worker process, through vLLM's `worker_extension_cls`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.worker.workspace import unlock_workspace

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
        """Install routing; called once, after the model is loaded and before the first request.

        Raises:
            RuntimeError: CUDA graphs were asked for, and vLLM has captured none.
        """
        self.checkpoint = StoredWeights(self.vllm_config.model_config.model)
        if not self.vllm_config.model_config.enforce_eager:
            manager = getattr(self.model_runner, "cudagraph_manager", None)
            if manager is None or not manager.graphs:
                raise RuntimeError(
                    "rollout.cuda_graphs: vLLM captured no graph of decode batches here: its model runner or its "
                    "attention backend cannot; set it to false"
                )
            self._captured = self.model_runner.model.slots.structure
        if not self.vllm_config.use_v2_model_runner:
            runner = self.model_runner
            runner._model_forward = partial(_forward_v1, runner, runner._model_forward)

    def push_overlay(self, run: str, version: int, weights: Mapping[str, Tensor]) -> int:
        """Serve `run` from these weights (Hugging Face names) from now on. Returns the bytes sent.

        They may change once this returns. Should it fail, the run has no weights here any more.
        """
        self.model_runner.model.set_overlay(run, None)  # first: a GPU then has room for as much
        overlay = self._copied(run, version, weights)
        self.model_runner.model.set_overlay(run, overlay)
        return overlay.bytes

    def extend_overlay(self, run: str, weights: Mapping[str, Tensor]) -> int:
        """Serve `run` from these weights too, beside those pushed before. Returns the bytes sent."""
        overlay = self.model_runner.model.overlays[run]
        part = self._copied(run, overlay.version, weights)
        self.model_runner.model.set_overlay(run, overlay.extended(part))
        return part.bytes

    def _copied(self, run: str, version: int, weights: Mapping[str, Tensor]) -> EngineOverlay:
        routed = self.model_runner.model
        memory = partial(routed.slots.take, run) if routed.slots else None
        try:
            overlay = routed.builder.build(version, weights, self.checkpoint, self.device, memory)
        except BaseException:
            routed.set_overlay(run, None)
            raise
        finally:
            self._release_old_graphs()
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
        """Forget a run's weights, if there are any; with the last run's go the stacks of static slots."""
        routed = self.model_runner.model
        routed.set_overlay(run, None)
        if routed.slots and not routed.overlays:
            routed.slots.clear()
            self._release_old_graphs()

    def slot_structure(self) -> int:
        """Return the number of the static slots' structure; graphs of another one are gone."""
        return self.model_runner.model.slots.structure

    def replays(self) -> int:
        """Return how many batches have been replays of a CUDA graph."""
        return self.model_runner.model_state.replays

    def capture_graphs(self) -> None:
        """Capture the CUDA graphs of decode batches anew, if the static slots' structure has changed."""
        runner, structure = self.model_runner, self.slot_structure()
        if self._captured == structure:
            return
        # As vLLM does when it changes its experts at run time; but a pool that was left by all of its graphs cannot be
        # captured into again.
        runner.cudagraph_manager.release_graphs()
        runner.cudagraph_manager.pool = current_platform.graph_pool_handle()
        unlock_workspace()
        with set_current_vllm_config(self.vllm_config):
            runner.capture_model()
        runner.model.hidden = None  # in a graph's memory
        self._captured = structure

    def _release_old_graphs(self) -> None:
        """Have batches run eagerly from now on, if graphs would read memory that is no longer the slots'."""
        if self.model_runner.model.slots and self._captured != self.slot_structure():
            self.model_runner.cudagraph_manager.release_graphs()
