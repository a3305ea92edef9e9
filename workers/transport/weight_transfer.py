"""Point-to-point weight transfer from a trainer's memory to its engine's: NCCL between GPUs, Gloo between CPUs.

A trainer offers its weights; the manifest, names and shapes, travels through Ray, and the engine that gets it receives
the tensors from the trainer itself. The two share a process group of torch.distributed, which is made once, and again
when another engine takes over the run.
"""

import contextlib
import itertools
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from layersweep.rollout.types import TransferFailed
from layersweep.workers.training.distributed import serve_store

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(seconds=60)
"""Time limit for the peer to connect, and for a tensor to arrive: of a trainer that stands still. One that dies is
noticed within seconds."""
LONGEST_POLL = 0.25
"""Seconds between polls, at most: by a sender for its receiver, by a receiver whether its sender lives."""
TRAINER, ENGINE = 0, 1
ALIVE = "alive"
"""Key that is never set: asking for it tells whether the trainer, whose process holds the store, still answers."""


Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype, by torch's name, and shape of tensors by name."""
_BLOCK = re.compile(r"model\.layers\.\d+\.")


@dataclass(frozen=True)
class WeightManifest:
    """Weights that wait in a trainer: its address, the offer's number, and their layout, in the order of sending."""

    address: tuple[str, int]
    number: int
    layout: Layout


class WeightSender:
    """The trainer's end.

    Args:
        host: address at which other nodes reach this one.
        device: from which weights are sent, wherever they are offered.
    """

    def __init__(self, host: str, device: torch.device):
        self.device = device
        self.store = serve_store()
        self.address = (host, self.store.port)
        self.number = 0
        self.session: str | None = None
        self.group: dist.Backend | None = None

    def offer(self, weights: dict[str, Tensor]) -> WeightManifest:
        """Offer weights to one receiver, before they change; the next offer replaces one that was not received."""
        self.number += 1
        layout = {name: (str(w.dtype).removeprefix("torch."), tuple(w.shape)) for name, w in weights.items()}
        threading.Thread(target=self._serve, args=(self.number, list(weights.values())), daemon=True).start()
        return WeightManifest(self.address, self.number, layout)

    def _serve(self, number: int, weights: list[Tensor]) -> None:
        key, pauses = _key(number), _pauses()
        while not self.store.check([key]):
            if self.number != number:
                return  # replaced by the next offer
            time.sleep(next(pauses))
        session = self.store.get(key).decode()
        try:
            if session != self.session:  # the first engine, or another one
                self.group, self.session = _join(self.store, session, TRAINER, self.device), session
            for tensor in weights:
                self.group.send([tensor.to(self.device).contiguous()], ENGINE, 0).wait()
            _synchronize(self.device)
        except RuntimeError as error:  # the engine is gone: its own call fails, and the driver sees to it
            if self.session == session:  # and not that of a later offer
                self.session = None
            logger.warning("weights could not be sent: %s", error)


@dataclass
class _Connection:
    """Connection to one trainer."""

    address: tuple[str, int]
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    group: dist.Backend | None = None

    def __post_init__(self) -> None:
        # Refused at once where the trainer is gone; the store would try again until the time limit.
        socket.create_connection(self.address, TIMEOUT.total_seconds()).close()
        self.store = dist.TCPStore(*self.address, is_master=False, wait_for_workers=False, timeout=TIMEOUT)

    def join(self, device: torch.device) -> None:
        """Meet the trainer in a process group, once."""
        self.group = self.group or _join(self.store, self.session, ENGINE, device)

    def receive(self, tensor: Tensor) -> None:
        """Fill a tensor with the next one that the trainer sends.

        Raises:
            RuntimeError: the trainer died, or the time limit is over.
        """
        work = self.group.recv([tensor], TRAINER, 0)
        if tensor.is_cuda:  # NCCL does not notice that a peer died; its kernel would wait, and with it the GPU
            try:
                until, pauses = time.monotonic() + TIMEOUT.total_seconds(), _pauses()
                while not work.is_completed() and time.monotonic() < until:
                    self.store.check([ALIVE])
                    time.sleep(next(pauses))
                work.wait()
            except RuntimeError:
                self.group.abort()
                raise
        work.wait()


class WeightReceiver:
    """The engine's end, for all its runs."""

    def __init__(self) -> None:
        self.connections: dict[str, _Connection] = {}
        self.stream: torch.cuda.Stream | None = None

    def receive(self, run: str, manifest: WeightManifest, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """Yield the offered weights of a run, on `device`, in parts: a block each, or a tensor outside of blocks.

        Raises:
            TransferFailed: the trainer does not send them.
        """
        connection = self.connections.pop(run, None)  # kept only where it works
        with _reported(run):
            if connection is None or connection.address != manifest.address:
                connection = _Connection(manifest.address)
            connection.store.set(_key(manifest.number), connection.session)
            connection.join(device)
        for names in in_parts(manifest.layout):
            yield self._receive_part(run, connection, {name: manifest.layout[name] for name in names}, device)
        self.connections[run] = connection

    def _receive_part(
        self, run: str, connection: _Connection, layout: Layout, device: torch.device
    ) -> dict[str, Tensor]:
        with self._own_stream(device):
            part = {name: torch.empty(s, dtype=getattr(torch, t), device=device) for name, (t, s) in layout.items()}
            with _reported(run):
                for tensor in part.values():
                    connection.receive(tensor)
                _synchronize(device)
        return part

    def _own_stream(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Keep what waits for a trainer off the stream on which the engine computes."""
        if device.type != "cuda":
            return contextlib.nullcontext()
        self.stream = self.stream or torch.cuda.Stream(device)
        return torch.cuda.stream(self.stream)

    def forget(self, run: str) -> None:
        """Drop the connection of a run."""
        self.connections.pop(run, None)


def choose_transport(
    transfer: str, trainer: str, engine: str, gathered: bool = False
) -> Literal["handle", "direct", "object_store"]:
    """Choose how a run's weights travel.

    Args:
        transfer: `rollout.weight_transfer` of the spec.
        trainer, engine: policies.model.tensor_transport.device_name of each; of an engine that spans GPUs, `several`.
        gathered: whether the weights are copies in host memory (ZeRO 3), of which there are no handles.
    """
    if transfer == "object_store" or engine == "several" or (trainer == "cpu") != (engine == "cpu"):
        return "object_store"
    if trainer == "cpu":
        return "direct" if transfer == "direct" else "object_store"
    if trainer != engine:
        return "direct"
    return "object_store" if gathered else "handle"  # NCCL takes a GPU for one process of a group only


def in_parts(names: Iterable[str]) -> list[list[str]]:
    """Split names of weights, in their order, into those of a block each and single ones outside of blocks."""
    groups = itertools.groupby(names, key=lambda name: block[0] if (block := _BLOCK.match(name)) else name)
    return [list(group) for _, group in groups]


@contextlib.contextmanager
def _reported(run: str) -> Iterator[None]:
    """Turn errors of sockets, stores and process groups into one."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise TransferFailed(f"{run}: its weights did not reach the engine: {error}") from error


def _key(number: int) -> str:
    return f"offer-{number}"


def _pauses() -> Iterator[float]:
    """Yield seconds to wait, from short ones to LONGEST_POLL."""
    pause = 0.0025
    while True:
        yield (pause := min(2 * pause, LONGEST_POLL))


def _join(store: dist.Store, session: str, rank: int, device: torch.device) -> dist.Backend:
    shared = dist.PrefixStore(session, store)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
        # A failed transfer then raises in the call that waits for it; torch's watchdog would end the process with the
        # engine in it. Read by groups that are made from here on, not by DeepSpeed's and vLLM's own.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
        return dist.ProcessGroupNCCL(shared, rank, 2, TIMEOUT)
    return dist.ProcessGroupGloo(shared, rank, 2, TIMEOUT)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # NCCL's wait() is of the stream alone
