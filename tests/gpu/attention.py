"""The trainer's attention by both ways, sequences of torch's FlashAttention and masks: same numbers, time, memory."""

import contextlib
from dataclasses import replace
from typing import Any

from tests.gpu.common import Setting, seconds, setting
from tests.gpu.findings import say
from tests.gpu.trainer import GROUP, PROMPT, RESPONSE, experience
from tests.helpers.varlen_on_cpu import as_if_on_a_gpu

WAYS = {False: "masks", True: "sequences"}


def uneven(exp: Any) -> Any:
    """Shorten responses to a quarter of their length and more, as answers are."""
    import numpy as np

    lengths = np.random.default_rng(1).integers(exp.lengths // 4, exp.lengths + 1).astype(np.int32)
    count = int(lengths.sum())
    return replace(exp, lengths=lengths, tokens=exp.tokens[:count], logprobs=exp.logprobs[:count])


def numbers(trunk: Any, exp: Any, layer: int, varlen: bool) -> tuple[Any, Any]:
    """Return the log-probabilities of all response tokens, and the gradient of their mean at a layer, float32."""
    import torch

    from layersweep.policies.model.tree_batch import pack
    from layersweep.policies.model.trunk import Policy
    from layersweep.policies.selection import Selection

    policy = Policy(trunk, Selection.layer(layer))
    found = torch.empty(len(exp.tokens), device=trunk.model.device)
    for packed in pack(exp.prompts, exp.tokens, exp.lengths, range(len(exp.lengths)), 1 << 14, varlen):
        batch = packed.to(trunk.model.device)
        logp, _ = policy(batch, trunk.prefix(batch, layer), 1.0)
        found[batch.token] = logp.detach()
        (logp.sum() / len(exp.tokens)).backward()
    return found, torch.cat([parameter.grad.float().flatten() for parameter in policy.parameters()])


def compare(trunk: Any, exp: Any, layers: int) -> None:
    """Compare log-probabilities and gradients by both ways."""
    import torch

    (masked, by_masks), (found, gradient) = (numbers(trunk, exp, layers // 2, varlen) for varlen in WAYS)
    off = float((found - masked).square().mean().sqrt())
    say("attention", "log-probabilities by both ways, nats (rms)", off, "< 0.05", off < 0.05)
    cosine = float(torch.cosine_similarity(gradient, by_masks, dim=0))
    say("attention", f"gradients of layer {layers // 2} by both ways, cosine", cosine, "> 0.99", cosine > 0.99)


def update(given: Setting, trunk: Any, layer: int, exp: Any) -> dict[bool, tuple[float, float]]:
    """Return seconds and GiB of an update by each way."""
    import torch

    from layersweep.policies.algorithms.grpo import GRPO
    from layersweep.policies.model.trunk import Policy
    from layersweep.policies.selection import Selection
    from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
    from layersweep.workers.training.deepspeed_backend import DeepSpeedBackend
    from layersweep.workers.training.update_loop import UpdateLoop

    longest = int(exp.lengths.max())
    tokens = 2 * (PROMPT + GROUP * longest)
    training = TrainingConfig(dtype="bfloat16", max_response_tokens=longest, micro_batch_tokens=tokens)
    found = {}
    for varlen in WAYS:
        trunk.varlen = varlen
        backend = DeepSpeedBackend(Policy(trunk, Selection.layer(layer)), training, DeepSpeedConfig())
        loop = UpdateLoop(trunk, backend, GRPO(), training)
        if given.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        spent = seconds(lambda loop=loop: loop.update(exp, 1), 2)
        found[varlen] = spent, torch.cuda.max_memory_allocated() / 2**30 if given.gpu else 0.0
    return found


def main() -> None:
    given = setting(__doc__)
    import torch

    from layersweep.policies.model.trunk import Trunk
    from layersweep.policies.model.varlen_check import WINDOW, check_kernel
    from layersweep.workers.training.distributed import prepare, serve_store

    folder, config = given.model()
    store = serve_store()
    prepare(0, 1, "127.0.0.1", store.port, gpu=given.gpu)
    with contextlib.nullcontext() if given.gpu else as_if_on_a_gpu():
        sizes = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        for window in (None, WINDOW):
            check_kernel(*sizes, sizes[2] ** -0.5, window, torch.bfloat16, torch.device(given.device))
        say("attention", "the kernel is plain attention, with and without a window", True, "True", True)
        trunk = Trunk.load(folder, "bfloat16", given.device, attention="auto")
        say("attention", "a trainer takes it", trunk.varlen, str(given.gpu), trunk.varlen == given.gpu)
        layers = config["num_hidden_layers"]
        exp = uneven(experience(4, RESPONSE[given.device], config["vocab_size"]))
        compare(trunk, exp, layers)
        for layer in (0, layers - 1):
            found = update(given, trunk, layer, exp)
            for varlen, (spent, memory) in found.items():
                say("attention", f"layer {layer}: update by {WAYS[varlen]}, ms", 1000 * spent)
                if given.gpu:
                    say("attention", f"layer {layer}: update by {WAYS[varlen]}, GiB", memory)
            if given.gpu:
                for what, masks, sequences in zip(("time", "memory"), *found.values(), strict=True):
                    share = sequences / masks
                    say("attention", f"layer {layer}: {what}, of that under masks", share, "< 1", share < 1, must=False)


if __name__ == "__main__":
    main()
