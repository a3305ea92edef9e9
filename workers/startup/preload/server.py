"""The preloaded process: imports once, forks for each client, ends with its parent and sees to it that all do.

One thread and no Ray in here: both are what makes the fork safe.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from typing import Any

import psutil

END = b"end"
"""Message of the parent at its orderly end; standard input that ends without it means that the parent was killed."""
POLL = 10.0
"""Seconds between listings of the driver's processes."""


def serve(address: str) -> None:
    """Serve clients until standard input ends: the parent is gone or has closed it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    _preload(ENGINE)
    wake, woken = socket.socketpair()
    for end in (wake, woken, listener):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    workers: dict[socket.socket, int] = {}
    complete = False
    parent, guarded = psutil.Process(os.getppid()), set[psutil.Process]()
    with selectors.DefaultSelector() as ready:
        for source in (listener, woken, sys.stdin):
            ready.register(source, selectors.EVENT_READ)
        while True:
            events = [key.fileobj for key, _ in ready.select(POLL)]
            if not events or listener in events:
                guarded |= _below(parent)  # added to: of a parent that is gone nothing is below
            for source in events:
                if source is sys.stdin:
                    for pid in workers.values():
                        os.kill(pid, signal.SIGKILL)
                    if os.read(sys.stdin.fileno(), len(END)) != END:
                        _reap(guarded)
                    with contextlib.suppress(OSError):  # the parent may have removed them already
                        os.unlink(address)
                        os.rmdir(os.path.dirname(address))
                    os._exit(0)  # nothing to clean up, and some of the imports complain of an ordinary end
                if source is listener:
                    connection, _ = listener.accept()
                    if pid := _fork(connection):
                        workers[connection] = pid
                        ready.register(connection, selectors.EVENT_READ)
                    else:  # the child has run its command
                        return
                elif source is woken:
                    woken.recv(4096)
                elif source in workers:  # the client was killed: so is its worker
                    os.kill(workers[source], signal.SIGKILL)
                    ready.unregister(source)
            for connection, pid in list(workers.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    _answer(connection, os.waitstatus_to_exitcode(status))
                    if connection in ready.get_map():
                        ready.unregister(connection)
                    connection.close()
                    del workers[connection]
            if workers and not complete:  # the first is an engine, which everything waits for
                _preload(TRAINER)
                complete = True


ENGINE = (
    "layersweep.rollout.engine.engine",
    "layersweep.rollout.engine.selfcheck",
    "layersweep.workers.actors.engine",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
)
TRAINER = (
    "layersweep.workers.training.deepspeed_backend",
    "layersweep.workers.training.update_loop",
    "layersweep.workers.actors.trainer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "torch.utils.cpp_extension",
    "deepspeed.module_inject.auto_ep_layer",
    "requests",
    "jsonschema",
)
"""Modules of engines and trainers, and what vLLM, the model, DeepSpeed and Ray import when they start."""


def _preload(names: tuple[str, ...]) -> None:
    sys.modules["ray"] = None  # vLLM would import it for its own Ray executor, and does without
    for name in names:
        with contextlib.suppress(ImportError):  # other versions may lack one; then the actor imports what it needs
            importlib.import_module(name)
    del sys.modules["ray"]
    if threading.active_count() > 1 or "ray._raylet" in sys.modules:
        raise RuntimeError("the preloaded imports started a thread or Ray: forking would not be safe")
    gc.collect()
    gc.freeze()  # the collector then leaves the shared pages alone


def _below(parent: psutil.Process) -> set[psutil.Process]:
    """Return all processes that the driver has started, and those that these have."""
    try:
        return set(parent.children(recursive=True)) - {psutil.Process()}
    except psutil.NoSuchProcess:
        return set()


def _reap(processes: set[psutil.Process]) -> None:
    """Kill what a killed driver left behind: Ray's agents, for one, take over a minute to notice."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil makes sure that it is not another one with the same number


def _answer(connection: socket.socket, code: int) -> None:
    try:
        connection.send(bytes([code & 0xFF]))
    except OSError:
        return  # the client has gone already: nothing waits for the status


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    connection.setblocking(True)
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    size, body = int.from_bytes(header, "big"), b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    return json.loads(body), descriptors


def _fork(connection: socket.socket) -> int:
    """Fork; return the worker's pid, or 0 in the worker after its command has run."""
    request, descriptors = _receive(connection)
    if pid := os.fork():
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    os.setpgid(0, 0)  # Ray kills a worker's whole group at its end, which must not be ours
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
