"""Choice of a backend: which of the two works on this machine, and why the other does not."""

import compileall
import functools
import logging
import sys
from typing import Literal

from layersweep.rollout.sandbox.inside import confine
from layersweep.rollout.sandbox.process import INSIDE, Backend, Limits, SandboxDied, SandboxError, SandboxProcess

logger = logging.getLogger(__name__)

Setting = Literal["auto", "bubblewrap", "subprocess"]
"""`auto` takes bubblewrap where it works, else a subprocess with a warning; the other two refuse to fall back."""


@functools.cache
def unavailable_reason(backend: Backend) -> str | None:
    """Return why this machine cannot run programs with `backend`; None when it can: one was run."""
    compileall.compile_dir(INSIDE, quiet=2)  # where it can be written to, a sandbox starts 5 ms sooner
    case = {"kind": "script", "common_names": False, "budget": 1, "input": b"40", "output_bytes": 100}
    probe = "import decimal; print(decimal.Decimal(2) + int(input()))"
    try:
        sandbox = SandboxProcess(backend, Limits())
    except SandboxError as error:
        return str(error)
    try:
        status, output = sandbox.run_case(case, probe)
    except (SandboxError, SandboxDied) as error:
        return str(error)
    finally:
        sandbox.close()
    if (status, output) == ("ok", b"42\n"):
        return None
    return f"a program that adds two numbers ended with {status!r}; is {sys.base_prefix} readable by every user?"


_FIX = "install bubblewrap 0.7 or later (`apt-get install bubblewrap`) and allow its namespaces in this container"


def select_backend(setting: Setting) -> Backend:
    """Return the backend for a setting.

    Raises:
        SandboxError: when the one asked for does not work here, or none does.
    """
    if setting != "subprocess":
        reason = unavailable_reason("bubblewrap")
        if reason is None:
            return "bubblewrap"
        if setting == "bubblewrap":
            raise SandboxError(
                f"sandbox: bubblewrap does not work here: {reason}. To fix it, {_FIX}; or set sandbox: auto"
            )
    if (refusal := unavailable_reason("subprocess")) is not None:
        raise SandboxError(f"no sandbox works here. subprocess: {refusal}. To fix it, {_FIX}")
    if setting == "auto":
        _warn(reason)
    return "subprocess"


@functools.cache
def _warn(reason: str) -> None:
    """Log the fallback, once per process."""
    logger.warning(
        "programs run in a plain subprocess, since bubblewrap does not work here (%s). %s", reason, weaknesses()
    )


def weaknesses() -> str:
    """Say what a program in the subprocess backend can do on this machine and could not in bubblewrap."""
    if confine.landlock_version():
        return "It confines system calls and files as well; programs cannot write to a temporary folder."
    return (
        "It confines system calls, but this kernel has no Landlock: programs can READ every file that this user "
        "(for root: every user) can read, the tests among them, and cannot write to a temporary folder."
    )


def diagnose_backends() -> dict[str, str]:
    """Return, by backend, `works`, or why it does not and what to do; and by `auto` the backend that it takes."""
    found = {name: unavailable_reason(name) for name in ("bubblewrap", "subprocess")}
    works = [name for name, reason in found.items() if reason is None]
    lines = {name: "works" if reason is None else reason for name, reason in found.items()}
    if found["bubblewrap"] is not None:
        lines["bubblewrap"] += f". To fix it, {_FIX}"
    if found["subprocess"] is None:
        lines["subprocess"] += f". {weaknesses()}"
    return lines | {"auto": works[0] if works else "none works here: code tasks cannot be run"}
