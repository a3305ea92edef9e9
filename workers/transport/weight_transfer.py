"""Weights straight from a trainer's memory to its engine's: over NCCL between GPUs, over Gloo between CPUs.

A trainer offers its weights; the offer, names and shapes, travels through Ray, and whoever takes it receives the
tensors from the trainer itself. The two share a process group of torch.distributed, which is made once, and again
when another engine takes the run over.
"""

import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from layersweep.workers.training.distributed import free_port

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=5)
"""For the other side to turn up, and for a tensor to arrive."""
LONGEST_PAUSE = 0.25
"""Seconds between looks at whether an offer is taken."""
TRAINER, ENGINE = 0, 1


@dataclass(frozen=True)
class WeightManifest:
    """Weights that wait in a trainer, by name: dtype and shape."""

    address: tuple[str, int]
    number: int
    layout: dict[str, tuple[str, tuple[int, ...]]]


class WeightSender:
    """The trainer's end.

    Args:
        host: where other nodes reach this one.
    """

    def __init__(self, host: str):
        self.address = (host, free_port())
        self.store = dist.TCPStore(*self.address, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        self.number = 0
        self.session: str | None = None
        self.group: dist.Backend | None = None

    def offer(self, weights: dict[str, Tensor]) -> WeightManifest:
        """To be taken once, before the weights change; the next offer takes the place of one that nobody took."""
        self.number += 1
        layout = {name: (str(w.dtype).removeprefix("torch."), tuple(w.shape)) for name, w in weights.items()}
        threading.Thread(target=self._serve, args=(self.number, list(weights.values())), daemon=True).start()
        return WeightManifest(self.address, self.number, layout)

    def _serve(self, number: int, weights: list[Tensor]) -> None:
        key, pause = _key(number), 0.005
        while not self.store.check([key]):
            if self.number != number:
                return  # nobody took it
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        session = self.store.get(key).decode()
        try:
            if session != self.session:  # the first engine, or another one
                self.group, self.session = _join(self.store, session, TRAINER, weights[0].device), session
            for tensor in weights:
                self.group.send([tensor.contiguous()], ENGINE, 0).wait()
            _settle(weights[0].device)
        except RuntimeError as error:  # the engine is gone: its own call fails, and the driver sees to it
            self.session = None
            logger.warning("weights could not be sent: %s", error)


@dataclass
class _Connection:
    """To one trainer."""

    address: tuple[str, int]
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    group: dist.Backend | None = None

    def __post_init__(self) -> None:
        self.store = dist.TCPStore(*self.address, is_master=False, wait_for_workers=False, timeout=TIMEOUT)


class WeightReceiver:
    """The engine's end, for all its runs."""

    def __init__(self) -> None:
        self.links: dict[str, _Connection] = {}

    def take(self, run: str, offer: WeightManifest, device: torch.device) -> dict[str, Tensor]:
        """The offered weights, on `device`.

        Raises:
            RuntimeError: the trainer does not send them.
        """
        link = self.links.pop(run, None)  # kept only where it works
        if link is None or link.address != offer.address:
            link = _Connection(offer.address)
        link.store.set(_key(offer.number), link.session)
        link.group = link.group or _join(link.store, link.session, ENGINE, device)
        weights = {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            for name, (dtype, shape) in offer.layout.items()
        }
        for tensor in weights.values():
            link.group.recv([tensor], TRAINER, 0).wait()
        _settle(device)
        self.links[run] = link
        return weights

    def forget(self, run: str) -> None:
        self.links.pop(run, None)


def way(transfer: str, trainer: str, engine: str) -> Literal["handle", "direct", "object_store"]:
    """How weights travel.

    Args:
        transfer: `rollout.weight_transfer` of the spec.
        trainer, engine: policies.model.tensor_transport.device_name of each; of an engine that spans GPUs, `several`.
    """
    if transfer == "object_store" or engine == "several" or (trainer == "cpu") != (engine == "cpu"):
        return "object_store"
    if trainer == "cpu":
        return "direct" if transfer == "direct" else "object_store"
    return "handle" if trainer == engine else "direct"  # NCCL takes a GPU for one process of a group only


def _key(number: int) -> str:
    return f"offer-{number}"


def _join(store: dist.Store, session: str, rank: int, device: torch.device) -> dist.Backend:
    shared = dist.PrefixStore(session, store)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
        # Whoever waits for a transfer gets its error, where torch's watchdog would end the process, engine and all.
        # Read by groups that are made from here on, not by DeepSpeed's and vLLM's own.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        return dist.ProcessGroupNCCL(shared, rank, 2, TIMEOUT)
    return dist.ProcessGroupGloo(shared, rank, 2, TIMEOUT)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # NCCL's wait() is of the stream alone
