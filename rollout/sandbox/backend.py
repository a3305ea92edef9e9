"""The two ways to start a sandbox, which of them works on this machine, and why not the other."""

import compileall
import functools
import itertools
import logging
import marshal
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layersweep.rollout.sandbox.inside import confine

logger = logging.getLogger(__name__)

Setting = Literal["auto", "bubblewrap", "subprocess"]
"""`auto` takes bubblewrap where it works, else a subprocess with a warning; the other two refuse to fall back."""

Name = Literal["bubblewrap", "subprocess"]

_INSIDE = str(Path(__file__).resolve().parent / "inside")
_START = f"import sys; sys.path.insert(0, {_INSIDE!r}); import supervisor; supervisor.main()"
# Like -I, but a fixed hash seed may be given: the verdict on a program must not change from run to run.
_FLAGS = ("-S", "-s", "-P", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": "/tmp", "TMPDIR": "/tmp"}
_TMP_BYTES, _FILE_BYTES = 16 << 20, 8 << 20
_THREADS = 64
# The range that systemd reserves for users that exist only while a service runs.
_UIDS = range(61184, 65518)
_ANSWER_SECONDS = 20
_uid_offsets = itertools.count(os.getpid() * 74)


class SandboxError(RuntimeError):
    """Programs cannot be run safely here. The message says why and what to do."""


class SandboxDied(Exception):
    """One sandbox stopped answering; others are not concerned."""


@dataclass(frozen=True)
class Limits:
    """What one start of a program may use."""

    cpu_seconds: int = 6
    memory_bytes: int = 1 << 30

    @property
    def wall_seconds(self) -> float:
        """Generous, since only a program that sleeps needs it: a busy machine must not fail an honest one."""
        return 3.0 * self.cpu_seconds + 2


class SandboxProcess:
    """One running sandbox. Not for use by several threads, and it must end in the thread that started it."""

    def __init__(self, backend: Name, limits: Limits):
        """Starts a sandbox in which each program may use as much as `limits` says.

        Raises:
            SandboxError: when it does not come up.
        """
        self.dirty = False
        """Whether a program changed the private /tmp; the next program needs another sandbox then."""
        self._wait = limits.wall_seconds + _ANSWER_SECONDS
        is_root = os.geteuid() == 0
        may_write = backend == "bubblewrap"
        landlock = backend == "subprocess" and confine.landlock_version() > 0
        rules = {
            "limits": {
                "cpu": limits.cpu_seconds,
                "memory": limits.memory_bytes,
                "file": _FILE_BYTES if may_write else 0,
                "processes": _THREADS if is_root else _THREADS + _tasks(),
            },
            "seconds": limits.wall_seconds,
            "uid": _UIDS[next(_uid_offsets) * 2 % len(_UIDS)] if is_root else None,
            "may_write": may_write,
            "landlock": landlock,
            "readable": _readable() if landlock else [],
        }
        command = [os.path.realpath(sys._base_executable), *_FLAGS, "-c", _START]
        if backend == "bubblewrap":
            command = [*_bubblewrap(is_root), *command]
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise SandboxError(f"{backend} cannot be started: {error}") from error
        try:
            self.ask(rules)
        except (SandboxDied, SandboxError) as error:
            self.close()
            raise SandboxError(f"{backend} does not start a sandbox: {error}") from error

    def ask(self, *frames: Any) -> tuple[str, bytes]:
        """Sends a case, its program and perhaps its tests, and waits for how it ended and its output.

        Raises:
            SandboxDied: when no answer comes.
            SandboxError: when a program could not be confined, so that it was not run.
        """
        alarm = threading.Timer(self._wait, self._process.kill)
        alarm.start()
        try:
            for frame in frames:
                data = marshal.dumps(frame)
                self._process.stdin.write(len(data).to_bytes(8, "big") + data)
            self._process.stdin.flush()
            size = self._process.stdout.read(8)
            answer = self._process.stdout.read(int.from_bytes(size, "big"))
        except BrokenPipeError:
            size = answer = b""
        finally:
            alarm.cancel()
        if len(size) < 8 or len(answer) < int.from_bytes(size, "big"):
            if said := self._said():  # no program can write there, so this is a fault of ours or of the machine
                raise SandboxError(f"the sandbox failed: {said}")
            raise SandboxDied(f"no answer within {self._wait:.0f} s, or the sandbox was killed")
        status, output, self.dirty = marshal.loads(answer)
        if status == "error":
            raise SandboxError(f"a program cannot be confined: {output.decode()}")
        return status, output

    def close(self) -> None:
        """Kills the sandbox and all that runs in it."""
        self._process.kill()
        self._process.stdout.read()  # ends when the last process that can write to it is gone
        self._process.wait()
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # what was left unsent to a sandbox that is gone
        self._errors.close()

    def _said(self) -> str:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        return self._errors.read(4096).decode("utf-8", "replace").strip()


def _readable() -> list[str]:
    """The files and folders without which Python does not run."""
    prefix = sys.base_prefix
    paths = [os.path.realpath(sys._base_executable), f"{prefix}/lib", f"{prefix}/lib64", _INSIDE]
    paths += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def _bubblewrap(is_root: bool) -> list[str]:
    """The command that isolates what follows it. Raises SandboxError where there is none.

    For root, a user namespace would make things worse: the kernel would go on to see root in it, whom a limit on
    processes does not bind. So root keeps the right to become an unused user, which the warden does in every child.
    """
    if is_root:
        spaces = "--unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --cap-drop ALL"
        spaces += " --cap-add CAP_SETUID --cap-add CAP_SETGID --cap-add CAP_KILL"
    else:
        spaces = "--unshare-all --cap-drop ALL"
    if (program := shutil.which("bwrap")) is None:
        raise SandboxError("bubblewrap cannot be started: there is no bwrap on the PATH")
    command = [program, *spaces.split(), "--die-with-parent", "--new-session"]
    command += ["--perms", "1777", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]
    readable = _readable()
    for folder in sorted({str(parent) for path in readable for parent in Path(path).parents} - {"/", "/tmp"}):
        command += ["--perms", "0755", "--dir", folder]  # else closed to the unused user
    for path in readable:
        command += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]


def _tasks() -> int:
    """How many threads this machine runs: an upper bound on those of this user, whom the limit counts as a whole."""
    return int(re.search(r"/(\d+)", Path("/proc/loadavg").read_text())[1])


@functools.cache
def why_not(backend: Name) -> str | None:
    """None when this machine can run programs with `backend` (one was run), else the reason."""
    compileall.compile_dir(_INSIDE, quiet=2)  # where it can be written to, a sandbox starts 5 ms sooner
    probe = "import decimal; print(decimal.Decimal(2) + int(input()))"
    try:
        warden = SandboxProcess(backend, Limits())
    except SandboxError as error:
        return str(error)
    try:
        status, output = warden.ask({"kind": "script", "input": b"40", "output_bytes": 100}, probe)
    except (SandboxError, SandboxDied) as error:
        return str(error)
    finally:
        warden.close()
    if (status, output) == ("ok", b"42\n"):
        return None
    return f"a program that adds two numbers ended with {status!r}; is {sys.base_prefix} readable by every user?"


_FIX = "install bubblewrap 0.7 or later (`apt-get install bubblewrap`) and allow its namespaces in this container"


def choose(setting: Setting) -> Name:
    """The backend for a setting.

    Raises:
        SandboxError: when the one asked for does not work here, or none does.
    """
    if setting != "subprocess":
        reason = why_not("bubblewrap")
        if reason is None:
            return "bubblewrap"
        if setting == "bubblewrap":
            raise SandboxError(
                f"sandbox: bubblewrap does not work here: {reason}. To mend it, {_FIX}; or set sandbox: auto"
            )
    if (refusal := why_not("subprocess")) is not None:
        raise SandboxError(f"no sandbox works here. subprocess: {refusal}. To mend it, {_FIX}")
    if setting == "auto":
        _warn(reason)
    return "subprocess"


@functools.cache
def _warn(reason: str) -> None:
    """Once per process."""
    logger.warning(
        "programs run in a plain subprocess, since bubblewrap does not work here (%s). %s", reason, weaknesses()
    )


def weaknesses() -> str:
    """What a program in the subprocess backend can do on this machine and could not in bubblewrap."""
    if confine.landlock_version():
        return "It confines system calls and files as well; programs cannot write to a temporary folder."
    return (
        "It confines system calls, but this kernel has no Landlock: programs can READ every file that this user "
        "(for root: everybody) can read, the tests among them, and cannot write to a temporary folder."
    )


def doctor() -> dict[str, str]:
    """For `layersweep doctor`: backend names and `works`, or why not and what to do; and `auto`, what that takes."""
    found = {name: why_not(name) for name in ("bubblewrap", "subprocess")}
    works = [name for name, reason in found.items() if reason is None]
    lines = {name: "works" if reason is None else reason for name, reason in found.items()}
    if found["bubblewrap"] is not None:
        lines["bubblewrap"] += f". To mend it, {_FIX}"
    if found["subprocess"] is None:
        lines["subprocess"] += f". {weaknesses()}"
    return lines | {"auto": works[0] if works else "none works here: code tasks cannot be run"}
