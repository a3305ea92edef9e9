"""Joining a Ray cluster, or starting one on this machine."""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

from layersweep.orchestrator.remote.ray_token import ADVICE, show_token
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.startup.environment import FOLDER, worker_environment
from layersweep.workers.startup.preload import preloaded

from .own_session import check_interrupted, restore_handlers, stop_handlers

STARTS = 3
"""How often a Ray of our own is started at most."""
NAMES_SECONDS = 10.0
"""How long the actors of a driver that was killed may take to end."""


@contextlib.contextmanager
def connected(address: str | None, namespace: str, gpu: bool) -> Iterator[dict[str, Any]]:
    """Ray, initialised in the sweep's own namespace for the time of a `with` block.

    Args:
        address: of a running cluster (`auto`, `host:6379`, `ray://...`); None starts one here, without dashboard.
        gpu: whether the sweep's actors use GPUs.

    Yields:
        The runtime environment of engines and trainers: on a CPU-only Ray of our own, forked from a preloaded process.

    Raises:
        SpecError: nothing answers at the address, it refuses the token, or a sweep of this name is running there.
    """
    environment = worker_environment(gpu)
    os.environ.update(environment)  # before Ray starts: its idle workers then need no restart to have them
    with contextlib.ExitStack() as stack:
        # CUDA does not survive a fork; and on other people's nodes no server of ours is running.
        forked = stack.enter_context(preloaded(environment)) if address is None and not gpu else {}
        if address is not None:
            show_token(address)
        elif "ray" not in sys.modules:  # which has read it by then
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default for a new cluster, which else it announces
        import ray

        there = {"env_vars": environment | {FOLDER: os.getcwd()}}
        local = {"include_dashboard": False} if address is None else {"runtime_env": there}
        options = {"namespace": namespace, "log_to_driver": False, "configure_logging": False} | local
        handlers = stop_handlers()
        try:
            start_ray(address or "local", **options)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            # Ray says the same of a cluster that is not there and of one that wants another token.
            reason = str(error).partition(". ")[0]
            raise SpecError(
                [f"--address {address}: no Ray cluster answers there, or not to this token ({reason}); {ADVICE}"]
            ) from error
        stack.callback(ray.shutdown)
        restore_handlers(handlers)  # Ray has one of its own for SIGTERM, which ends the process at once
        check_interrupted()
        wait_for_names(namespace)
        yield forked


def start_ray(address: str, **options: Any) -> None:
    """Call `ray.init`, again where a Ray that starts here does not come up within Ray's own 30 seconds, as on a machine
    that is very busy.

    Args:
        address, options: as for `ray.init`.
    """
    import ray

    _free_agent_port()
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(address, **options)
            return
        except Exception as error:  # Ray has no type of its own for it
            if attempt == STARTS or "timed out during startup" not in str(error):
                raise
            print("layersweep: Ray did not come up within 30 s; starting it again", file=sys.stderr, flush=True)
            ray.shutdown()


def _free_agent_port() -> None:
    """Have a Ray that starts here take any free port for its node's agent.

    `ray.init` has no argument for it, and with the default port, 52365, a `ray start --head` on this machine would come
    up without its job agent, so that nothing could be submitted to it.
    """
    from ray._private.parameter import RayParams
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT as default

    RayParams.__init__.__defaults__ = tuple(
        0 if value == default else value for value in RayParams.__init__.__defaults__
    )


def wait_for_names(namespace: str, besides: Collection[str] = ()) -> None:
    """Wait until no sweep of this name has actors on the cluster. Those of a killed driver end by themselves.

    Args:
        besides: names of actors that may go on.

    Raises:
        SpecError: there still is one after NAMES_SECONDS.
    """
    from ray.util import list_named_actors

    until = time.monotonic() + NAMES_SECONDS
    while not set(list_named_actors()) <= set(besides):
        if time.monotonic() > until:
            name = namespace.removeprefix("layersweep-")
            raise SpecError([f"name: a sweep {name} is running on this cluster already; choose another name"])
        time.sleep(0.5)
