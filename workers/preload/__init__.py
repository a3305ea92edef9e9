"""Trainers that start in a fraction of a second: forked from one process that has imported everything.

A cold trainer imports torch, transformers and DeepSpeed, five CPU seconds each, before it does anything. On a
machine where the driver starts Ray itself, it also starts `server`, which imports them once. Trainers ask Ray for
the Python executable `client` (Ray's documented `py_executable` of a runtime environment): a few lines that hand
their command line, environment and file descriptors to the server, which forks and becomes the worker there.
Where no server listens, the client executes the ordinary Python instead: slower, and the same in every other way.
The forked pages are shared too, so a further trainer's imports cost hardly any memory.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SOCKET = "LAYERSWEEP_PRELOAD_SOCKET"
"""Environment variable that names the server's socket."""


@dataclass
class Preload:
    """The server, as the driver sees it."""

    server: subprocess.Popen
    address: str

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Of actors to be forked from the server."""
        client = Path(__file__).with_name("client.py")
        return {"py_executable": f"{sys.executable} -S -E {client}", "env_vars": {SOCKET: self.address}}

    def guard(self) -> None:
        """What this process has started so far ends with it, even if it is killed: the server sees to that."""
        found = psutil.Process().children(recursive=True)
        lines = [f"{p.pid} {p.create_time()!r}\n" for p in found if p.pid != self.server.pid and p.is_running()]
        self.server.stdin.write("".join(lines).encode())
        self.server.stdin.flush()


@contextlib.contextmanager
def preloaded(environment: dict[str, str]) -> Iterator[Preload]:
    """A server for the time of a `with` block."""
    # The server removes the folder at its end, also when this process is killed.
    with tempfile.TemporaryDirectory(prefix="layersweep-", ignore_cleanup_errors=True) as folder:
        address = str(Path(folder) / "preload")
        server = subprocess.Popen(
            [sys.executable, "-m", "workers.preload.server", address],
            env=os.environ | environment,
            stdin=subprocess.PIPE,  # its end tells the server that this process is gone
            start_new_session=True,  # a terminal's Ctrl-C is for the driver alone
        )
        try:
            yield Preload(server, address)
        finally:
            server.stdin.close()
            server.wait()
