"""Joining a Ray cluster, or starting one on this machine."""

import os
from typing import Any

from workers.environment import worker_environment


def connect(address: str | None, namespace: str, gpu: bool) -> Any:
    """Ray, initialised in the sweep's own namespace.

    Args:
        address: of a running cluster (`auto`, `host:6379`, `ray://...`); None starts one here, without dashboard.
    """
    environment = worker_environment(gpu)
    os.environ.update(environment)  # before Ray starts: its idle workers then need no restart to have them
    import ray

    local = {"include_dashboard": False} if address is None else {"runtime_env": {"env_vars": environment}}
    ray.init(
        address=address or "local",
        namespace=namespace,
        log_to_driver=False,
        configure_logging=False,
        **local,
    )
    return ray
