"""Engines and trainers that start in a fraction of a second: forked from one process that has imported everything.

A cold trainer imports torch, transformers and DeepSpeed, five CPU seconds each, before it does anything, an engine
vLLM, nine. On a machine where the driver starts Ray itself, it first starts `server`, which imports them once, beside
Ray's own start. Engines and trainers ask Ray for the Python executable `client` (Ray's documented `py_executable` of a
runtime environment): a few lines that hand their command line, environment and file descriptors to the server, which
forks and becomes the worker there. Where no server listens, the client executes the ordinary Python instead: slower,
and the same in every other way. The forked pages are shared too, so a further trainer's imports cost hardly any memory.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOCKET = "LAYERSWEEP_PRELOAD_SOCKET"
"""Environment variable that names the server's socket."""


@contextlib.contextmanager
def preloaded(environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A server for the time of a `with` block; yields the runtime environment of actors to be forked from it."""
    # The server removes the folder at its end, also when this process is killed.
    with tempfile.TemporaryDirectory(prefix="layersweep-", ignore_cleanup_errors=True) as folder:
        address = str(Path(folder) / "preload")
        server = subprocess.Popen(
            [sys.executable, "-m", "layersweep.workers.startup.preload.server", address],
            env=os.environ | environment,
            stdin=subprocess.PIPE,  # its end tells the server that this process is gone; after b"end", in good order
            start_new_session=True,  # a terminal's Ctrl-C is for the driver alone
        )
        client = Path(__file__).with_name("client.py")
        try:
            yield {"py_executable": f"{sys.executable} -S -E {client}", "env_vars": {SOCKET: address}}
        finally:
            server.communicate(b"end")
