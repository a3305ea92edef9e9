"""Faults of routing, model and trainer, planted one after the other into an engine that is then self-checked; a
program: `python -m tests.rollout.engine.faults MODEL_FOLDER ARCHITECTURE DTYPE [FAULT ...]`; without names, all.

It prints as JSON what a sound engine differs by, and of each fault the check's refusal, or null where it passed.
"""

import json
import os
import sys
from unittest.mock import patch

from layersweep.workers.startup.environment import worker_environment

os.environ.update(worker_environment(gpu=False))

from layersweep.policies.model import fused_cpu, tree_attention  # noqa: E402
from layersweep.rollout.config import RolloutConfig  # noqa: E402
from layersweep.rollout.engine import model, overlay  # noqa: E402
from layersweep.rollout.engine.engine import RolloutEngine  # noqa: E402
from layersweep.rollout.engine.overlay import EngineOverlay, LayerOverlay  # noqa: E402
from layersweep.rollout.engine.row_routing import RowRouting  # noqa: E402
from layersweep.rollout.engine.selfcheck import RoutingMismatch, check  # noqa: E402
from layersweep.rollout.engine.worker import OverlayWorker  # noqa: E402


class FirstShardWorker(OverlayWorker):
    """A worker that keeps the first rank's shard of every overlay, whatever its rank."""

    def push_overlay(self, run, version, weights):
        with patch.object(overlay, "_shard", lambda weight, dim, rank, parts: weight.chunk(parts, dim)[0]):
            return super().push_overlay(run, version, weights)


def in_block(change):
    """A fault in a block's overlay: `change` gets its weights and vLLM's block of the base."""
    build = LayerOverlay.build.__func__

    def faulty(cls, layer, *args):
        overlay = build(cls, layer, *args)
        change(overlay.weights, layer)
        return overlay

    return patch.object(LayerOverlay, "build", classmethod(faulty))


def in_run(change):
    """A fault in a run's overlay."""
    build = EngineOverlay.build.__func__

    def faulty(cls, *args):
        overlay = build(cls, *args)
        change(overlay)
        return overlay

    return patch.object(EngineOverlay, "build", classmethod(faulty))


def in_routing(change):
    """A fault in which rows belong to which run."""
    init = RowRouting.__init__

    def faulty(self, *args):
        init(self, *args)
        change(self)

    return patch.object(RowRouting, "__init__", faulty)


def base_norm(weights, layer):
    weights["post_norm"] = layer.post_attention_layernorm.weight.detach().clone()


def base_qk_norms(weights, layer):
    weights["q_norm"] = layer.self_attn.q_norm.weight.detach().clone()
    weights["k_norm"] = layer.self_attn.k_norm.weight.detach().clone()


def transposed(weights, layer):
    weights["o"] = weights["o"].T.contiguous()


def other_shard(weights, layer):
    weights["down"] = weights["down"].roll(weights["down"].shape[1] // 2, 1)


def gate_for_up(weights, layer):
    weights["gate_up"] = weights["gate_up"].roll(len(weights["gate_up"]) // 2, 0)


def one_layer_off(overlay):
    if len(overlay.layers) == 1:
        overlay.layers = {max(0, k - 1) if k else 1: layer for k, layer in overlay.layers.items()}


def first_two_swapped(routing):
    routing.names[:2] = routing.names[:2][::-1]


def base_rows_to_a_run(routing):
    for owners in (routing.of_request, routing.of_token):
        owners[owners < 0] = 0


def positions_of_other_rows():
    project = LayerOverlay.project

    def faulty(self, positions, hidden, residual):
        return project(self, positions.roll(1), hidden, residual)

    return patch.object(LayerOverlay, "project", faulty)


def first_version_stays():
    push = OverlayWorker.push_overlay

    def faulty(self, run, version, weights):
        return 0 if run in self.model_runner.model.overlays else push(self, run, version, weights)

    return patch.object(OverlayWorker, "push_overlay", faulty)


def pieces_out_of_place():
    merge = model._merge

    def faulty(parts, pieces, rows):
        if len(parts) > 1 and parts[0][0] is not None:
            parts = [(parts[0][0].flip(0), parts[0][1]), *parts[1:]]
        return merge(parts, pieces, rows)

    return patch.object(model, "_merge", faulty)


def attention_scale_of_the_trainer():
    attention = tree_attention._attention

    def faulty(module, query, key, value, mask, scaling, **kwargs):
        return attention(module, query, key, value, mask, scaling * 0.5, **kwargs)

    return patch.object(tree_attention, "_attention", faulty)


def rotation_of_the_trainer():
    return patch.object(fused_cpu, "_rotated", lambda x, cos, sin: x * cos)


FAULTS = {
    "a norm keeps the base's weights": lambda: in_block(base_norm),
    "q and k norms keep the base's weights": lambda: in_block(base_qk_norms),
    "a bias is dropped": lambda: in_block(lambda weights, layer: weights.pop("qkv_bias")),
    "a projection is transposed": lambda: in_block(transposed),
    "a projection is not copied": lambda: in_block(lambda weights, layer: weights["down"].zero_()),
    "a shard is another's": lambda: in_block(other_shard),
    "gate and up are exchanged": lambda: in_block(gate_for_up),
    "the base is served to all": lambda: patch.object(model, "_block", lambda layer, parts, *rest: layer(*rest)),
    "two runs are swapped": lambda: in_routing(first_two_swapped),
    "the base's rows go to a run": lambda: in_routing(base_rows_to_a_run),
    "rows come back out of place": pieces_out_of_place,
    "an overlay is one layer off": lambda: in_run(one_layer_off),
    "the embedding of full is the base's": lambda: in_run(lambda overlay: setattr(overlay, "embedding", None)),
    "the final norm of full is the base's": lambda: in_run(lambda overlay: setattr(overlay, "norm", None)),
    "the head of full is the base's": lambda: in_run(lambda overlay: setattr(overlay, "head", None)),
    "a block of full is the base's": lambda: in_run(
        lambda overlay: overlay.layers.pop(1) if len(overlay.layers) > 1 else None
    ),
    "positions are other rows'": positions_of_other_rows,
    "a push does nothing": first_version_stays,
    "the trainer's attention scale": attention_scale_of_the_trainer,
    "the trainer's rotation": rotation_of_the_trainer,
}


def applies(fault: str, config, dtype: str) -> bool:
    """Tell whether this model has what the fault breaks, and rounding leaves it visible."""
    if "q and k norms" in fault:
        return config.model_type == "qwen3"
    if "bias" in fault:
        return config.model_type == "qwen2"
    if "transposed" in fault:
        return config.num_attention_heads * config.head_dim == config.hidden_size
    if "rotation" in fault:
        return dtype == "float32"  # other dtypes have transformers' own
    if "a block of full" in fault:
        return dtype == "float32"  # a twentieth of one block in many
    return True


def main(folder: str, architecture: str, dtype: str, *chosen: str) -> None:
    config = RolloutConfig(batching="mixed", max_num_seqs=32, max_num_batched_tokens=2048, kv_cache_memory_mib=64)
    engine = RolloutEngine(folder, architecture, config, dtype, seed=0)
    sound = check(engine, folder, dtype)
    refusals = {}
    for fault, plant in FAULTS.items():
        if (not chosen or fault in chosen) and applies(fault, engine._engine.vllm_config.model_config.hf_config, dtype):
            try:
                with plant():
                    refusals[fault] = check(engine, folder, dtype) and None
            except RoutingMismatch as mismatch:
                refusals[fault] = str(mismatch)
    print(json.dumps({"sound": sound, "again": check(engine, folder, dtype), "refusals": refusals}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
