"""The trainer: right numbers, share of the peak arithmetic, and memory against the plan's, by what is trained."""

from typing import Any

from tests.gpu.common import Setting, seconds, setting
from tests.gpu.findings import say

PROMPT, GROUP = 256, 4
RESPONSE = {"cuda": 768, "cpu": 12}
PEAK_TFLOPS = 989e12
"""bfloat16, dense, of the H100 and H200."""


def experience(groups: int, response: int, vocabulary: int) -> Any:
    """Groups of four responses of one length to a prompt each, half of them rewarded."""
    import numpy as np

    from layersweep.rollout.types import Experience

    rng, rows = np.random.default_rng(0), np.arange(groups * GROUP)
    prompts = rng.integers(2, vocabulary, (groups, PROMPT)).astype(np.int32)
    count = len(rows) * response
    return Experience(
        prompts=list(prompts.repeat(GROUP, axis=0)),
        tokens=rng.integers(2, vocabulary, count).astype(np.int32),
        logprobs=np.full(count, -np.log(vocabulary), np.float32),
        lengths=np.full(len(rows), response, np.int32),
        reward=(rows % 2).astype(np.float32),
        group=rows // GROUP,
        trajectory=rows,
        step=np.zeros_like(rows),
        truncated=np.zeros(len(rows), bool),
        format_ok=np.ones(len(rows), bool),
    )


def right_numbers(trunk: Any, folder: str, exp: Any, device: str) -> float:
    """Return the root mean square of differences, in nats, between the trunk's log-probabilities of the first group's
    responses, as one tree, and transformers' own in float32, response by response."""
    import torch
    from transformers import AutoModelForCausalLM

    from layersweep.policies.model.tree_batch import pack

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device)
    (batch,) = pack(exp.prompts, exp.tokens, exp.lengths, range(GROUP), 1 << 20, trunk.varlen)
    batch, length, differences = batch.to(torch.device(device)), int(exp.lengths[0]), []
    ours = trunk.reference(batch, trunk.prefix(batch, 0), 0, 1.0).split(length)
    with torch.no_grad():
        for row in range(GROUP):
            answer = torch.from_numpy(exp.tokens[row * length : (row + 1) * length]).long()
            ids = torch.cat([torch.from_numpy(exp.prompts[row]).long(), answer])[None].to(device)
            logits = plain(ids).logits[0, PROMPT - 1 : -1]
            theirs = logits.log_softmax(-1).gather(-1, answer[:, None].to(device)).squeeze(-1)
            differences.append(ours[row] - theirs)
    return float(torch.cat(differences).square().mean().sqrt())


def update_loop(trunk: Any, selection: Any, exp: Any, checkpointing: str = "off") -> Any:
    """Make the update loop of a selection, a prompt with its responses to a micro batch."""
    from layersweep.policies.algorithms.grpo import GRPO
    from layersweep.policies.model.trunk import Policy
    from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
    from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend
    from layersweep.workers.training.update_loop import UpdateLoop

    length = int(exp.lengths[0])
    training = TrainingConfig(dtype="bfloat16", max_response_tokens=length, micro_batch_tokens=PROMPT + GROUP * length)
    backend = DeepSpeedBackend(Policy(trunk, selection), training, DeepSpeedConfig())
    unchecked = 0 if checkpointing == "on" else float("inf")
    return UpdateLoop(trunk, backend, GRPO(kl_coefficient=0.001), training, unchecked_tokens=unchecked)


def update(given: Setting, trunk: Any, selection: Any, exp: Any, checkpointing: str) -> None:
    """Measure updates of one selection."""
    import torch

    from layersweep.orchestrator.planning.cost_model import update_flops
    from layersweep.policies.model.architecture import Architecture
    from layersweep.workers.training.micro_batch_size import activation_bytes

    name = selection.name + (", checkpointed" if checkpointing == "on" else "")
    shape = Architecture.from_config(trunk.model.config.to_dict())
    row = PROMPT + GROUP * int(exp.lengths[0])
    loop = update_loop(trunk, selection, exp, checkpointing)
    if given.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    spent = seconds(lambda: loop.update(exp, 1), 2)
    tokens = row * len(exp.lengths) // GROUP
    flops = tokens * update_flops(shape, selection, row / 2, True, 1)
    share = flops / spent / PEAK_TFLOPS
    say("trainer", f"{name}: update of {tokens} tokens, ms", 1000 * spent)
    if not given.gpu:
        return
    say("trainer", f"{name}: share of peak", share, ">= 0.35", share >= 0.35, must=False)
    trained = sum(parameter.numel() for parameter in loop.policy.parameters())
    counted = 2 * shape.parameters + 18 * trained
    counted += activation_bytes(shape, selection, 2, row, True, checkpointing == "on", trunk.kernels)
    found = torch.cuda.max_memory_allocated()
    off = abs(found / counted - 1)
    say("trainer", f"{name}: memory, GiB (the plan's {counted / 2**30:.2f})", found / 2**30, "within 10 %", off < 0.1)


def against_plain(given: Setting, folder: str, trunk: Any, exp: Any, layer: int) -> None:
    """Measure an update with Liger's kernels and with transformers' modules, one after the other."""
    from unittest.mock import patch

    from layersweep.policies.model import trunk as module
    from layersweep.policies.selection import Selection

    with patch.object(module, "_fuse", lambda model: False):
        plain = module.Trunk.load(folder, "bfloat16", given.device, attention="auto")
    loops = [update_loop(of, Selection.layer(layer), exp) for of in (trunk, plain)]
    fused, without = (seconds(lambda loop=loop: loop.update(exp, 1), 2) for loop in loops)
    say("trainer", f"layer {layer}: time by Liger's kernels, of that by transformers' modules", fused / without, "< 1",
        fused < without, must=False)  # fmt: skip


def main() -> None:
    given = setting(__doc__)
    import torch

    from layersweep.policies.model.trunk import Trunk
    from layersweep.policies.selection import Selection
    from layersweep.workers.training.distributed import prepare, serve_store

    folder, config = given.model()
    layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    store = serve_store()
    prepare(0, 1, "127.0.0.1", store.port, gpu=given.gpu)
    trunk = Trunk.load(folder, "bfloat16", given.device, attention="auto")
    exp = experience(2, RESPONSE[given.device], vocabulary)
    off = right_numbers(trunk, folder, exp, given.device)
    say("trainer", "log-probabilities from transformers' in float32, nats", off, "< 0.05", off < 0.05)
    say("trainer", "norms, rotary embeddings and SwiGLU by Liger's kernels", trunk.kernels.fused)
    runs = [(Selection.layer(k), "off") for k in (0, layers // 2, layers - 1)]
    runs += [(Selection.layer(0), "on"), (Selection.full(), "off"), (Selection.full(), "on")]
    for selection, checkpointing in runs:
        update(given, trunk, selection, exp, checkpointing)
        if given.gpu:
            torch.cuda.empty_cache()
    if trunk.kernels.fused:
        against_plain(given, folder, trunk, exp, layers // 2)


if __name__ == "__main__":
    main()
