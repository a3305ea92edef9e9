"""Joining a Ray cluster, or starting one on this machine."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from workers.environment import worker_environment
from workers.preload import preloaded


@contextlib.contextmanager
def connected(address: str | None, namespace: str, gpu: bool) -> Iterator[dict[str, Any]]:
    """Ray, initialised in the sweep's own namespace for the time of a `with` block.

    Args:
        address: of a running cluster (`auto`, `host:6379`, `ray://...`); None starts one here, without dashboard.
        gpu: whether the sweep's actors use GPUs.

    Yields:
        The runtime environment of trainers: on a CPU-only Ray of our own, forked from a preloaded process.
    """
    environment = worker_environment(gpu)
    os.environ.update(environment)  # before Ray starts: its idle workers then need no restart to have them
    with contextlib.ExitStack() as stack:
        # CUDA does not survive a fork; and on other people's nodes no server of ours is running.
        trainers = stack.enter_context(preloaded(environment)) if address is None and not gpu else {}
        import ray

        local = {"include_dashboard": False} if address is None else {"runtime_env": {"env_vars": environment}}
        ray.init(address=address or "local", namespace=namespace, log_to_driver=False, configure_logging=False, **local)
        stack.callback(ray.shutdown)
        yield trainers
