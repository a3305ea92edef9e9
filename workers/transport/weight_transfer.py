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
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from layersweep.rollout.types import TransferFailed
from layersweep.workers.training.distributed import serve_store

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = timedelta(seconds=60)
"""Time limit for the peer to join, and for a tensor to arrive: of a trainer that stands still, or whose node is lost.
One that dies is noticed at once."""
POLL = 0.25
"""Seconds between polls, at most: by a sender for its receiver, by a receiver whether its sender lives."""
TRAINER, ENGINE = 0, 1
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
        key, pause = _key(number), 0.005
        while not self.store.check([key]):
            if self.number != number:
                return  # replaced by the next offer
            time.sleep(pause)
            pause = min(2 * pause, POLL)
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


class _Connection:
    """Connection to one trainer."""

    def __init__(self, address: tuple[str, int], device: torch.device):
        self.address, self.device, self.session = address, device, uuid.uuid4().hex
        self.group: dist.Backend | None = None
        self.lifeline = socket.create_connection(address, TIMEOUT.total_seconds())
        """A socket that nothing is sent through: it is closed when the trainer's process ends."""
        self.store = self.watched(
            lambda: dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=TIMEOUT)
        )

    def ask_for(self, number: int) -> None:
        """Have the trainer send an offer."""
        self.store.set(_key(number), self.session)
        self.group = self.group or self.watched(lambda: _join(self.store, self.session, ENGINE, self.device))

    def receive(self, layout: Layout, stream: contextlib.AbstractContextManager) -> dict[str, Tensor]:
        """Receive tensors of this layout, which the trainer sends next."""

        def receive() -> dict[str, Tensor]:
            with stream:
                made = {n: torch.empty(s, dtype=getattr(torch, t), device=self.device) for n, (t, s) in layout.items()}
                for tensor in made.values():
                    self.group.recv([tensor], TRAINER, 0).wait()
                _synchronize(self.device)
            return made

        return self.watched(receive)

    def watched(self, work: Callable[[], T]) -> T:
        """Do what waits for the trainer, and stop waiting once it is gone, or the time limit is over.

        Neither a store that connects, nor NCCL, nor Gloo before its first byte notices that a peer has died, and a
        store that connects knows no time limit once it is connected.

        Raises:
            OSError: it is gone, or stands still; the work goes on in its thread until its own time limit.
        """
        done: Future[T] = Future()
        until = time.monotonic() + TIMEOUT.total_seconds()
        threading.Thread(target=_run, args=(done, work), daemon=True).start()
        while True:
            try:
                return done.result(timeout=POLL)
            except TimeoutError:
                if done.done():  # the work's own
                    raise
            gone = select.select([self.lifeline], [], [], 0)[0]
            if gone or time.monotonic() > until:
                if self.device.type == "cuda" and self.group:
                    self.group.abort()  # or its kernel would wait, and with it the GPU
                raise ConnectionResetError("the trainer is gone") if gone else TimeoutError("the trainer does not send")


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
                connection = _Connection(manifest.address, device)
            connection.ask_for(manifest.number)
        for names in in_parts(manifest.layout):
            yield self._part(run, connection, {name: manifest.layout[name] for name in names})
        self.connections[run] = connection

    def _part(self, run: str, connection: _Connection, layout: Layout) -> dict[str, Tensor]:
        with _reported(run):
            return connection.receive(layout, self._own_stream(connection.device))

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


def _run(done: Future, work: Callable[[], Any]) -> None:
    try:
        done.set_result(work())
    except Exception as error:  # handed to the caller
        done.set_exception(error)


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
