"""Functions that tests call in worker processes."""

import subprocess
import time

_state = {"warm": False}


def burn(seconds: float) -> float:
    """Takes so much CPU time."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass
    return seconds


def warm_up() -> None:
    """Takes more CPU time than the calls may."""
    burn(1)
    _state["warm"] = True


def warm(_: object) -> bool:
    """Tells whether `warm_up` was called in this process."""
    return _state["warm"]


def start_a_process(_: object) -> int:
    """Starts a process that sleeps, and returns its id."""
    return subprocess.Popen(["sleep", "300"]).pid


class Mute(Exception):
    """Raises when it is shown."""

    def __str__(self) -> str:
        raise RuntimeError


def raise_mute(_: object) -> None:
    """Raises an exception that cannot be shown."""
    raise Mute
