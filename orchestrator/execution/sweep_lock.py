"""The lock of a sweep's folder: two drivers would overwrite each other's checkpoints.

Every driver makes a lock file of its own, numbered one above the highest that is there: `<folder>/lock/000003.json`.
A file is created exclusively (on object stores by a conditional write), so of two drivers that start at the same moment
one gets the number. The highest number owns the sweep until its owner writes into it that it is done, or is gone:

- on the same host, when its process is not there any more;
- on another host, when its heartbeat has not changed for SILENT_SECONDS by this host's clock. The clocks of the two
  hosts are never compared.

Numbers only grow and the highest file stays, so a driver that looked earlier can never take a number that was passed.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.storage.files import create_exclusively, find_files, read_bytes, resolve_uri, write_atomically

from .own_session import stop_at_once

HEARTBEAT_SECONDS = 10.0
"""Seconds between two heartbeats of an owner."""
SILENT_SECONDS = 45.0
"""Seconds without a change of its heartbeat after which an owner on another host counts as gone."""


@contextlib.contextmanager
def hold_lock(folder: str) -> Iterator[None]:
    """Own the sweep in a folder for the time of a `with` block.

    Raises:
        SpecError: another driver owns it.
    """
    number, token = _acquire(folder), uuid.uuid4().hex
    _heartbeat(folder, number, token)
    ended = threading.Event()
    thread = threading.Thread(target=_heartbeats, args=(folder, number, token, ended), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # a full disk: the process's end says the same
            _write(folder, number, {"released": True})


def check_owner(folder: str) -> None:
    """Refuse a sweep that another driver owns. One that may be gone is watched for SILENT_SECONDS.

    Raises:
        SpecError: another driver owns it.
    """
    _check_owner(folder, _highest(folder))


def describe_driver(folder: str) -> tuple[str, bool]:
    """Describe a sweep's latest driver, and say whether it has surely ended. Waits for nothing.

    A driver on another host that is gone without a word cannot be told from one that this host's clock runs ahead of,
    so only the age of its heartbeat is given.
    """
    number = _highest(folder)
    owner = {} if number is None else _read(folder, number)
    if "host" not in owner:
        return "none now", number is None or "released" in owner
    name = f"process {owner['pid']} on {owner['host']}"
    if owner["host"] == socket.gethostname():
        return (name, False) if _is_alive(owner) else (f"{name}, which is gone", True)
    return f"{name}, last heartbeat {max(0.0, time.time() - owner['heartbeat']):.0f} s ago", False


def _check_owner(folder: str, number: int | None) -> None:
    if number is not None and (owner := _owner(folder, number)):
        raise SpecError([
            f"{folder}: process {owner.get('pid')} on {owner.get('host')} is running this sweep; wait for it, or stop "
            "it first"
        ])  # fmt: skip


def _acquire(folder: str) -> int:
    """Create the next lock file. Returns its number."""
    # One look for both: a driver that came in between has this number, and creating it fails.
    number = _highest(folder)
    _check_owner(folder, number)
    number = (number or 0) + 1
    try:
        create_exclusively(_file(folder, number), _sign("").encode())
    except FileExistsError:
        number -= 1  # the one that was faster is named
    if (highest := _highest(folder)) != number or _read(folder, number).get("token") != "":
        raise SpecError([f"{folder}: another driver started this sweep at the same moment; wait for it, or stop it"])
    for older in range(max(1, highest - 10), highest):
        filesystem, path = resolve_uri(_file(folder, older))
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm_file(path)
    return number


def _owner(folder: str, number: int) -> dict[str, Any] | None:
    """Return the driver behind a lock file; None where it is done or gone."""
    owner = _read(folder, number)
    if owner.get("released"):
        return None
    if owner.get("host") == socket.gethostname():
        return owner if _is_alive(owner) else None
    if owner:  # else it is being created
        print(f"layersweep: {owner['host']} has locked {folder}; watching for {SILENT_SECONDS:.0f} s whether it is "
              "still there", file=sys.stderr)  # fmt: skip
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(1.0)
        if (now := _read(folder, number)) != owner:
            return None if now.get("released") else now
    return None


def _is_alive(owner: dict[str, Any]) -> bool:
    """Tell whether a driver's process is there, on its own host."""
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["began"]) < 1
    except psutil.NoSuchProcess:
        return False


def _heartbeats(folder: str, number: int, token: str, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):  # a full disk, say: the sweep itself finds out, and tells
            if _highest(folder) != number or _read(folder, number).get("token") != token:
                print(f"layersweep: another driver has taken {folder} over; ending at once", file=sys.stderr)
                stop_at_once()
                return
            _heartbeat(folder, number, token)


def _heartbeat(folder: str, number: int, token: str) -> None:
    write_atomically(_file(folder, number), lambda file: file.write(_sign(token).encode()))


def _sign(token: str) -> str:
    process = psutil.Process()
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "began": process.create_time(),
                       "token": token, "heartbeat": time.time()})  # fmt: skip


def _write(folder: str, number: int, content: dict[str, Any]) -> None:
    write_atomically(_file(folder, number), lambda file: file.write(json.dumps(content).encode()))


def _read(folder: str, number: int) -> dict[str, Any]:
    """Return the content of a lock file; empty while it is being created."""
    try:
        return json.loads(read_bytes(_file(folder, number)) or b"{}")
    except ValueError:
        return {}


def _highest(folder: str) -> int | None:
    """Return the highest number of a lock file; None where there is none."""
    filesystem, path = resolve_uri(f"{folder}/lock")
    numbers = [int(name.removesuffix(".json")) for name in find_files(filesystem, path, depth=1)
               if name.removesuffix(".json").isdigit()]  # fmt: skip
    return max(numbers, default=None)


def _file(folder: str, number: int) -> str:
    return f"{folder}/lock/{number:06d}.json"
