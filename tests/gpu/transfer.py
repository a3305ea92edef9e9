"""Weights from a trainer's process to an engine's: over NCCL between two GPUs, as CUDA IPC handles on one, over Gloo
without; and a trainer that dies meanwhile."""

import json
import os
import subprocess
import sys
import time
from typing import Any

from tests.gpu.common import Setting, setting, synchronize
from tests.gpu.findings import say

LAYERS = 4


def weights(device: Any, hidden: int) -> dict[str, Any]:
    """Blocks of square matrices, each of one number."""
    import torch

    return {
        f"model.layers.{k}.{name}": torch.full((hidden, hidden), float(k + 1), dtype=torch.bfloat16, device=device)
        for k in range(LAYERS)
        for name in "abcdefgh"
    }


def trainer(way: str, device: str, hidden: int) -> None:
    """Offer weights on standard output, and live until standard input ends."""
    import pickle

    import torch

    from layersweep.policies.model.tensor_transport import Handles
    from layersweep.workers.transport.weight_transfer import WeightSender

    made = weights(device, hidden)
    offer = WeightSender("127.0.0.1", torch.device(device)).offer(made) if way == "direct" else Handles().of(made)
    print("OFFER " + pickle.dumps(offer).hex(), flush=True)
    sys.stdin.read()


def start_trainer(way: str, device: str, hidden: int, gpu: int) -> tuple[subprocess.Popen, Any]:
    """Start a trainer on its own GPU; its process and what it offers."""
    import pickle

    command = [sys.executable, "-m", "tests.gpu.transfer", json.dumps([way, device, hidden])]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": str(gpu)} if device == "cuda" else {})
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    line = next(line for line in process.stdout if line.startswith("OFFER "))
    return process, pickle.loads(bytes.fromhex(line.split()[1]))


def direct(given: Setting, device: str, gpu: int, hidden: int) -> None:
    """Receive weights, once to connect and once to measure; then from a trainer that is killed."""
    import torch

    from layersweep.rollout.types import TransferFailed
    from layersweep.workers.transport.weight_transfer import WeightReceiver

    here, receiver = torch.device(device), WeightReceiver()
    way = "NCCL" if device == "cuda" else "Gloo"
    process, offer = start_trainer("direct", device, hidden, gpu)
    began = time.perf_counter()
    found = {name: tensor for part in receiver.receive("run", offer, here) for name, tensor in part.items()}
    synchronize()
    spent = time.perf_counter() - began
    same = all(torch.equal(found[name], tensor) for name, tensor in weights(here, hidden).items())
    say("transfer", f"{way}: every bit arrives", same, "True", same)
    size = sum(tensor.nbytes for tensor in found.values())
    say("transfer", f"{way}: first transfer with its connection, GB/s", size / spent / 1e9)
    process.kill()
    process.wait()

    process, offer = start_trainer("direct", device, hidden, gpu)
    parts = receiver.receive("other", offer, here)
    next(parts)
    process.kill()
    process.wait()
    began = time.perf_counter()
    try:
        for _ in parts:
            pass
        outcome = "all had been sent"
    except TransferFailed:
        outcome = "noticed"
    spent = time.perf_counter() - began
    say("transfer", f"{way}: a trainer that dies, {outcome}, seconds", spent, "< 5", spent < 5)


def handle(hidden: int) -> None:
    """Read weights of a process on the same GPU."""
    import torch

    from layersweep.policies.model.tensor_transport import to_tensors

    process, offer = start_trainer("handle", "cuda", hidden, 0)
    began = time.perf_counter()
    found = to_tensors(offer, torch.device("cuda", 0))
    copies = {name: tensor.clone() for name, tensor in found.items()}
    torch.cuda.synchronize()
    spent = time.perf_counter() - began
    same = all(torch.equal(copies[name], tensor) for name, tensor in weights("cuda", hidden).items())
    say("transfer", "CUDA IPC: every bit arrives", same, "True", same)
    say("transfer", "CUDA IPC: GB/s", sum(tensor.nbytes for tensor in copies.values()) / spent / 1e9)
    del found
    process.stdin.close()
    process.wait(20)


def main() -> None:
    if len(sys.argv) == 2:
        return trainer(*json.loads(sys.argv[1]))
    given = setting(__doc__)
    import torch

    if not given.gpu:
        return direct(given, "cpu", 0, 64)
    handle(1024)
    if torch.cuda.device_count() > 1:
        direct(given, "cuda", 1, 2048)
    else:
        say("transfer", "NCCL", "not tried: it takes two GPUs")
    direct(given, "cpu", 0, 1024)


if __name__ == "__main__":
    main()
