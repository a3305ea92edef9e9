"""One driver a sweep: two on the same folder would overwrite each other's checkpoints."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import psutil

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.storage.files import located, read_bytes, write_atomically

BEAT = 10.0
"""Seconds between two signs of life."""
SILENT = 45.0
"""Seconds after which a driver on another machine, which cannot be looked at, counts as gone."""


@contextlib.contextmanager
def claimed(folder: str) -> Iterator[None]:
    """The sweep is this process's for the time of a `with` block; `<folder>/checkpoints/driver.json` says so.

    Raises:
        SpecError: another driver has it.
    """
    path = f"{folder}/checkpoints/driver.json"
    check_owner(folder)
    ended = threading.Event()
    _beat(path)
    thread = threading.Thread(target=_beats, args=(path, ended), name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        filesystem, place = located(path)
        if filesystem.exists(place):
            filesystem.rm_file(place)


def check_owner(folder: str) -> None:
    """Raises SpecError while another driver runs the sweep in this folder."""
    if owner := holder(folder):
        raise SpecError([
            f"{folder}: process {owner['pid']} on {owner['host']} is running this sweep; wait for it, or stop it first"
        ])  # fmt: skip


def holder(folder: str) -> dict | None:
    """The driver that runs the sweep in a folder now: host and pid; None where none does."""
    try:
        owner = json.loads(read_bytes(f"{folder}/checkpoints/driver.json") or b"null")
    except (OSError, ValueError):
        return None
    if owner is None:
        return None
    if owner["host"] == socket.gethostname():
        if not psutil.pid_exists(owner["pid"]):
            return None
        return owner if abs(psutil.Process(owner["pid"]).create_time() - owner["began"]) < 1 else None
    return owner if time.time() - owner["beat"] < SILENT else None


def _beats(path: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a full disk, say: the sweep itself finds out, and tells
            _beat(path)


def _beat(path: str) -> None:
    began = psutil.Process().create_time()
    sign = {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "beat": time.time()}
    write_atomically(path, lambda file: file.write(json.dumps(sign).encode()))
