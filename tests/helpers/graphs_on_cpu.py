"""vLLM's V2 model runner with CUDA graphs, on a CPU: its own dispatch, capture and replay, each graph a RecordedGraph.

The CPU's attention reads what it must know of a batch from vLLM's forward context rather than from buffers, so a replay
runs under the context of its batch; all other operations run again as they were recorded.
"""

import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any


def prepare_v2_runner() -> None:
    """Have vLLM take its V2 model runner, Triton's kernels interpreted; before vLLM is imported."""
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    from triton.backends import backends

    # vLLM for CPUs takes Triton only with a CPU backend; interpreted kernels need no backend at all.
    backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)


def install() -> None:
    """Replace what vLLM and the engine refuse, or cannot do, without a GPU; before an engine is made."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.forward_context import set_forward_context
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform
    from vllm.v1.attention.backend import AttentionCGSupport
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu import cudagraph_utils, model_runner
    from vllm.v1.worker.workspace import init_workspace_manager

    from layersweep.rollout.engine import engine
    from layersweep.rollout.engine.arguments import graph_settings
    from layersweep.rollout.engine.model_state import RoutedModelState
    from tests.helpers.recorded_graph import RecordedGraph

    batch: dict[str, Any] = {}

    class Graph(RecordedGraph):
        def replay(self) -> None:
            tokens = batch["tokens"]
            with set_forward_context(
                batch["attention"], batch["config"], num_tokens=tokens, slot_mapping=batch["slot_mapping"]
            ):
                super().replay()

    prepare, mappings = RoutedModelState.prepare_attn, model_runner.build_slot_mappings_by_layer
    configure, warm_up, build = EngineArgs.create_engine_config, CPUWorker.compile_or_warm_up_model, engine.engine_args

    def engine_args(model: str, architecture: str, config: Any, *args: Any) -> Any:
        arguments = build(model, architecture, config.model_copy(update={"cuda_graphs": False}), *args)
        arguments.enforce_eager, arguments.compilation_config = False, graph_settings(config)
        arguments.enable_chunked_prefill = True
        return arguments

    def prepare_attn(self: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        attention = prepare(self, input_batch, *args, **kwargs)
        batch.update(attention=attention, config=self.vllm_config, tokens=input_batch.num_tokens_after_padding)
        return attention

    def build_slot_mappings_by_layer(*args: Any) -> Any:
        batch["slot_mapping"] = mappings(*args)
        return batch["slot_mapping"]

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked, config = self.compilation_config, configure(self, *args, **kwargs)
        made = config.compilation_config
        made.cudagraph_mode, made.cudagraph_capture_sizes = asked.cudagraph_mode, asked.cudagraph_capture_sizes
        made.max_cudagraph_capture_size = max(asked.cudagraph_capture_sizes)
        return config

    def compile_or_warm_up_model(self: Any) -> Any:
        times = warm_up(self)
        init_workspace_manager(self.device)
        self.model_runner._dummy_run(64, skip_attn=True, is_profile=True)  # as on a GPU, before anything else
        self.model_runner.capture_model()
        return times

    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        pack(layer, remove_weight=False)  # a GPU's linear layer keeps its weight, which moves into a stack

    pack, utils.dispatch_cpu_unquantized_gemm = utils.dispatch_cpu_unquantized_gemm, dispatch_cpu_unquantized_gemm
    engine.engine_args = engine_args
    RoutedModelState.prepare_attn = prepare_attn
    model_runner.build_slot_mappings_by_layer = build_slot_mappings_by_layer
    EngineArgs.create_engine_config = create_engine_config
    CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model
    CPUAttentionMetadataBuilder._cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    cudagraph_utils.graph_capture = lambda device: nullcontext()
    cudagraph_utils.capture_pool = lambda pool, config: nullcontext(pool)
    cudagraph_utils.current_stream = lambda: None
    torch.cuda.CUDAGraph, torch.cuda.graph = Graph, lambda graph, pool, stream: graph
    type(current_platform)._global_graph_pool = (0, 0)
    type(current_platform).graph_pool_handle = lambda self: (0, 0)
