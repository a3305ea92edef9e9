"""Faults of routing, model and trainer, planted one after the other into an engine that is then self-checked; a
program: `python -m tests.rollout.engine.faults MODEL_FOLDER ARCHITECTURE DTYPE[,fp8] [FAULT ...]`; without names, all.
`fp8` is the KV cache's.

It prints as JSON what a sound engine differs by, and of each fault the check's refusal, or null where it passed.
"""

import json
import os
import sys
from unittest.mock import patch

from layersweep.workers.startup.environment import worker_environment

os.environ.update(worker_environment(gpu=False))

import torch  # noqa: E402

from layersweep.policies.model import fused_cpu, tree_attention  # noqa: E402
from layersweep.policies.model.stored_weights import StoredWeights  # noqa: E402
from layersweep.rollout.config import RolloutConfig  # noqa: E402
from layersweep.rollout.engine import model  # noqa: E402
from layersweep.rollout.engine.engine import RolloutEngine  # noqa: E402
from layersweep.rollout.engine.overlay import OverlayBuilder  # noqa: E402
from layersweep.rollout.engine.row_routing import RowGroups, RowRouting  # noqa: E402
from layersweep.rollout.engine.selfcheck import RoutingMismatch, check  # noqa: E402
from layersweep.rollout.engine.worker import OverlayWorker  # noqa: E402


class FirstShardWorker(OverlayWorker):
    """A worker that keeps the first rank's shard of every overlay, whatever its rank."""

    def push_overlay(self, run, version, weights):
        ranked = [x for m in self.model_runner.model.modules() for x in (m, *m.parameters()) if hasattr(x, "tp_rank")]
        ranked += [x for m in self.model_runner.model.builder.modules.values() for x in (m, *m.parameters())]
        ranks = [getattr(x, "tp_rank", None) for x in ranked]
        try:
            for x in ranked:
                x.tp_rank = 0
            return super().push_overlay(run, version, weights)
        finally:
            for x, rank in zip(ranked, ranks, strict=True):
                x.tp_rank = rank


def in_run(change):
    """A fault in a run's overlay: `change` gets its modules, by name, and vLLM's own model."""
    build = OverlayBuilder.build

    def faulty(self, *args):
        overlay = build(self, *args)
        change(overlay.modules, self.model)
        return overlay

    return patch.object(OverlayBuilder, "build", faulty)


def in_block(change):
    """A fault in a whole block's overlay: `change` gets its modules, by name in the block, and vLLM's block."""

    def faulty(modules, base):
        for k, layer in enumerate(base.model.layers):
            prefix = f"model.layers.{k}."
            own = {name.removeprefix(prefix): module for name, module in modules.items() if name.startswith(prefix)}
            if {"mlp.down_proj", "post_attention_layernorm"} <= own.keys():  # of a whole block
                change(own, layer)

    return in_run(faulty)


def others_of_a_part_are_zero():
    """A fault in a part's overlay: weights that are fused with its own are not the base's."""
    get = StoredWeights.__getitem__
    return patch.object(StoredWeights, "__getitem__", lambda self, name: torch.zeros_like(get(self, name)))


def in_routing(change):
    """A fault in which rows belong to which run."""
    init = RowRouting.__init__

    def faulty(self, *args):
        init(self, *args)
        change(self)

    return patch.object(RowRouting, "__init__", faulty)


def as_base(*names):
    def change(modules, layer):
        for name in names:
            modules[name].weight.data.copy_(layer.get_submodule(name).weight)

    return change


def transposed(modules, layer):
    modules["self_attn.o_proj"].weight.data = modules["self_attn.o_proj"].weight.data.T.contiguous()


def other_shard(modules, layer):
    weight = modules["mlp.down_proj"].weight.data
    weight.copy_(weight.roll(weight.shape[1] // 2, 1))


def gate_for_up(modules, layer):
    weight = modules["mlp.gate_up_proj"].weight.data
    weight.copy_(weight.roll(len(weight) // 2, 0))


def blocks(modules):
    return sorted({int(name.split(".")[2]) for name in modules if name.startswith("model.layers.")})


def one_layer_off(modules, base):
    if len(blocks(modules)) == 1:
        (k,) = blocks(modules)
        for name in list(modules):
            other = name.replace(f".{k}.", f".{max(0, k - 1) if k else 1}.")
            modules[other] = modules.pop(name)


def second_block_is_the_bases(modules, base):
    if len(blocks(modules)) > 1:
        for name in [name for name in modules if name.startswith("model.layers.1.")]:
            del modules[name]


def first_two_swapped(routing):
    routing.names = routing.names[:2][::-1] + routing.names[2:]


def base_rows_to_a_run(routing):
    for owners in (routing.of_request, routing.of_token):
        owners[owners < 0] = 0


def inputs_of_other_rows():
    part = RowGroups.parted
    return patch.object(RowGroups, "parted", lambda self, x, dim: part(self, x.roll(1, dim), dim))


def first_version_stays():
    push = OverlayWorker.push_overlay

    def faulty(self, run, version, weights):
        return 0 if run in self.model_runner.model.overlays else push(self, run, version, weights)

    return patch.object(OverlayWorker, "push_overlay", faulty)


def pieces_out_of_place():
    join = RowGroups.joined
    return patch.object(RowGroups, "joined", lambda self, pieces, dim: join(self, pieces, dim).roll(1, dim))


def attention_scale_of_the_trainer():
    attention = tree_attention._attention

    def faulty(module, query, key, value, mask, scaling, **kwargs):
        return attention(module, query, key, value, mask, scaling * 0.5, **kwargs)

    return patch.object(tree_attention, "_attention", faulty)


def rotation_of_the_trainer():
    return patch.object(fused_cpu, "_rotated", lambda x, cos, sin: x * cos)


FAULTS = {
    "a norm keeps the base's weights": lambda: in_block(as_base("post_attention_layernorm")),
    "q and k norms keep the base's weights": lambda: in_block(as_base("self_attn.q_norm", "self_attn.k_norm")),
    "a bias is dropped": lambda: in_block(lambda modules, layer: modules["self_attn.qkv_proj"].bias.data.zero_()),
    "a projection is transposed": lambda: in_block(transposed),
    "a projection is not copied": lambda: in_block(lambda modules, layer: modules["mlp.down_proj"].weight.data.zero_()),
    "a shard is another's": lambda: in_block(other_shard),
    "gate and up are exchanged": lambda: in_block(gate_for_up),
    "the base is served to all": lambda: patch.object(model.RoutedMixin, "_groups", lambda *_: None),
    "two runs are swapped": lambda: in_routing(first_two_swapped),
    "the base's rows go to a run": lambda: in_routing(base_rows_to_a_run),
    "rows come back out of place": pieces_out_of_place,
    "an overlay is one layer off": lambda: in_run(one_layer_off),
    "the embedding of full is the base's": lambda: in_run(lambda modules, base: modules.pop("model.embed_tokens", 0)),
    "the final norm of full is the base's": lambda: in_run(lambda modules, base: modules.pop("model.norm", 0)),
    "the head of full is the base's": lambda: in_run(lambda modules, base: modules.pop("lm_head", 0)),
    "a block of full is the base's": lambda: in_run(second_block_is_the_bases),
    "what a part is fused with is lost": others_of_a_part_are_zero,
    "a module's inputs are other rows'": inputs_of_other_rows,
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
    dtype, _, cache = dtype.partition(",")
    config = RolloutConfig(
        batching="mixed", max_num_seqs=32, max_num_batched_tokens=2048, kv_cache_memory_mib=64,
        kv_cache_dtype=cache or "auto",
    )  # fmt: skip
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
