"""The routed engine on the paths that only GPUs take, run without one; a program, as both are chosen before vLLM is
imported: `python -m tests.helpers.engine_elsewhere v2|graphs|spans|wrong_shard MODEL_FOLDER [DTYPE]`, which prints what
it saw as JSON.

`v2`: vLLM's own V2 model runner, its Triton kernels carried out by Triton's interpreter. `graphs`: the same, decode
batches as replays of recordings (`graphs_on_cpu`). `spans`: two tensor-parallel workers, spawned as they are from a Ray
actor. `wrong_shard`: the same, with a fault: both keep the first one's shards.
"""

import json
import os
import sys
from pathlib import Path

from layersweep.workers.startup.environment import worker_environment
from tests.helpers import any_mixture, graphs_on_cpu


def prepare(path: str) -> None:
    os.environ.update(worker_environment(gpu=False))
    if path not in ("v2", "graphs"):
        os.environ.update(VLLM_WORKER_MULTIPROC_METHOD="spawn", VLLM_CPU_OMP_THREADS_BIND="0|1")
        return
    graphs_on_cpu.prepare_v2_runner()


def under_load(engine, folder: str) -> dict:
    """Eighteen prompts of two runs and the base, more tokens than a pass takes: prompts are read in parts, beside
    responses that are being generated."""
    import numpy as np
    import torch

    from layersweep.rollout.engine.plain_forward import BLOCK, ChangedWeights, PlainForward, ScoredResponse
    from layersweep.rollout.types import Sampling

    plain = PlainForward(folder, "float32")
    base = ChangedWeights(plain.weights, {}, seed=0)
    states = {None: base}
    for k in (1, 2):
        amounts = {name: 0.5 for name in plain.weights if name.startswith(BLOCK.format(k))}
        states[f"block-{k}"] = ChangedWeights(plain.weights, amounts, seed=k)
    for run, state in states.items():
        if run:
            engine.push(run, 1, state).result(60)
    rng = np.random.default_rng(1)
    prompts = {run: [rng.integers(2, 32, 80).astype(np.int32) for _ in range(6)] for run in states}
    futures = {
        run: engine.generate(run, int(run is not None), mine, list(range(6)), Sampling(1, max_tokens=24, logprobs=True))
        for run, mine in prompts.items()
    }
    done = {run: future.result(300) for run, future in futures.items()}

    def largest_difference(run, state) -> float:
        responses = np.split(done[run].tokens, np.cumsum(done[run].lengths)[:-1])
        scored = [ScoredResponse(state, *pair) for pair in zip(prompts[run], responses, strict=True)]
        found = torch.cat(plain.logprobs(scored, torch.float32))
        return float((found - torch.from_numpy(done[run].logprobs.copy())).abs().max())

    difference = {run: largest_difference(run, state) for run, state in states.items()}
    control = {run: largest_difference(run, base) for run in states if run}
    again = engine.generate(None, 0, prompts[None][:1], [0], Sampling(1, max_tokens=24)).result(300)
    return {
        "worst": max(difference.values()),
        "control": min(control.values()),
        "same_alone": bool(np.array_equal(again.tokens, done[None].tokens[: again.lengths[0]])),
    }


def whole_in_parts(engine, folder: str) -> dict:
    """A run of the whole model, embedding and head among it, whose weights come block by block."""
    import numpy as np
    import torch

    from layersweep.rollout.engine.plain_forward import ChangedWeights, PlainForward, ScoredResponse
    from layersweep.rollout.types import Sampling
    from layersweep.workers.transport.weight_transfer import in_parts

    plain = PlainForward(folder, "float32")
    base = ChangedWeights(plain.weights, {}, seed=0)
    whole = ChangedWeights(plain.weights, dict.fromkeys(plain.weights, 0.3), seed=3)
    engine.push_parts("full", 1, ({name: whole[name] for name in names} for names in in_parts(whole)))
    prompts = [np.random.default_rng(k).integers(2, 32, 20).astype(np.int32) for k in range(4)]
    sampling = Sampling(1, max_tokens=24, logprobs=True)
    futures = [engine.generate(run, version, prompts, [0] * 4, sampling) for run, version in ((None, 0), ("full", 1))]
    done = futures[1].result(300)
    responses = np.split(done.tokens, np.cumsum(done.lengths)[:-1])
    found = []
    for state in (whole, base):
        scored = [ScoredResponse(state, *pair) for pair in zip(prompts, responses, strict=True)]
        exact = torch.cat(plain.logprobs(scored, torch.float32))
        found.append(float((exact - torch.from_numpy(done.logprobs.copy())).abs().max()))
    return dict(zip(("whole", "whole_control"), found, strict=True))


def main(path: str, folder: str, dtype: str = "float32") -> None:
    prepare(path)
    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine import engine as module
    from layersweep.rollout.engine.selfcheck import RoutingMismatch, check

    if path == "graphs":
        graphs_on_cpu.install()
    v2, build = path in ("v2", "graphs"), module.engine_args
    spans = 1 if v2 else 2

    def as_on_a_gpu(*args):
        arguments = build(*args)
        arguments.enable_chunked_prefill = v2 or arguments.enable_chunked_prefill
        if path == "wrong_shard":
            arguments.worker_extension_cls = "tests.rollout.engine.faults.FirstShardWorker"
        return arguments

    module.engine_args = as_on_a_gpu
    config = RolloutConfig(
        max_num_seqs=32, max_num_batched_tokens=256, kv_cache_memory_mib=1, tensor_parallel_size=spans,
        cuda_graphs=path == "graphs",
    )  # fmt: skip
    (architecture,) = json.loads((Path(folder) / "config.json").read_text())["architectures"]
    engine = module.RolloutEngine(folder, architecture, config, dtype, seed=0)
    seen = {"v2": engine._engine.vllm_config.use_v2_model_runner}
    try:
        seen["self_check"] = check(engine, folder, dtype)
    except RoutingMismatch as mismatch:
        seen["refused"] = str(mismatch)
    if v2 and dtype == "float32":
        seen |= under_load(engine, folder)
    if path == "spans":
        seen |= whole_in_parts(engine, folder)
    if path == "graphs" and dtype == "float32":
        seen |= any_mixture.serve(engine, folder)
        seen["without_rows"] = any_mixture.self_check_without_rows(engine, folder)
    print(json.dumps(seen), flush=True)
    engine._engine.engine_core.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
