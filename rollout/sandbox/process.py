"""One running sandbox: its command in either backend, its rules, and the frames that travel to it and back."""

import itertools
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

Backend = Literal["bubblewrap", "subprocess"]

INSIDE = str(Path(__file__).resolve().parent / "inside")
_START = f"import sys; sys.path.insert(0, {INSIDE!r}); import supervisor; supervisor.main()"
# Like -I, but a fixed hash seed may be given: the verdict on a program must not change from run to run.
_FLAGS = ("-S", "-s", "-P", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": "/tmp", "TMPDIR": "/tmp"}
_TMP_BYTES, _FILE_BYTES = 16 << 20, 8 << 20
_THREADS = 64
# The range that systemd reserves for users that exist only while a service runs.
_UIDS = range(61184, 65518)
_ANSWER_SECONDS = 20
_BUSY_SECONDS = 50  # of wall time for one of CPU time; beyond what the supervisor waits for
_uid_offsets = itertools.count(os.getpid() * 74)


class SandboxError(RuntimeError):
    """Programs cannot be run safely here. The message says why and what to do."""


class SandboxDied(Exception):
    """One sandbox stopped answering; others are not concerned."""


@dataclass(frozen=True)
class Limits:
    """Resources that one start of a program may use."""

    cpu_seconds: int = 6
    """CPU time; for a function under test, of each call."""
    memory_bytes: int = 1 << 30
    """Address space."""

    @property
    def wall_seconds(self) -> float:
        """Wall time for programs that sleep or wait; a busy machine's is not counted."""
        return 3.0 * self.cpu_seconds + 2


class SandboxProcess:
    """Running sandbox. Not for use by several threads; it must be closed in the thread that started it."""

    def __init__(self, backend: Backend, limits: Limits):
        """Start a sandbox in which each program may use as much as `limits` says.

        Raises:
            SandboxError: when it does not come up.
        """
        self.dirty = False
        """Whether a program changed the private /tmp; the next program needs another sandbox then."""
        self._limits = limits
        is_root = os.geteuid() == 0
        may_write = backend == "bubblewrap"
        landlock = backend == "subprocess" and confine.landlock_version() > 0
        rules = {
            "limits": {
                "memory": limits.memory_bytes,
                "file": _FILE_BYTES if may_write else 0,
                "processes": _THREADS if is_root else _THREADS + _tasks(),
            },
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
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
            self._ask([rules], _ANSWER_SECONDS)
        except (SandboxDied, SandboxError) as error:
            self.close()
            raise SandboxError(f"{backend} does not start a sandbox: {error}") from error

    def run_case(self, case: dict[str, Any], *frames: Any) -> tuple[str, bytes]:
        """Run a program, perhaps with tests; return how it ended, and its output.

        Args:
            case: `kind` (script, calls, tests), `common_names` (whether the program finds them), `budget` (how many
                times the limits of time hold for all of it), and for a script or calls `input` and `output_bytes`.
            frames: the program's text and, where the kind is tests, the tests.

        Raises:
            SandboxDied: when no answer comes.
            SandboxError: when a program could not be confined, so that it was not run.
        """
        seconds = self._limits.wall_seconds + _BUSY_SECONDS * self._limits.cpu_seconds
        return self._ask([case, *frames], seconds * case["budget"] + _ANSWER_SECONDS)

    def _ask(self, frames: list[Any], seconds: float) -> tuple[str, bytes]:
        alarm = threading.Timer(seconds, self._process.kill)
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
            if errors := self._errors_text():  # no program can write there: a fault of ours or of the machine
                raise SandboxError(f"the sandbox failed: {errors}")
            raise SandboxDied(f"no answer within {seconds:.0f} s, or the sandbox was killed")
        status, output, self.dirty = marshal.loads(answer)
        if status == "error":
            raise SandboxError(f"a program cannot be confined: {output.decode()}")
        return status, output

    def close(self) -> None:
        """Kill the sandbox and all that runs in it."""
        self._process.kill()
        self._process.stdout.read()  # ends when the last process that can write to it is gone
        self._process.wait()
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # what was left unsent to a sandbox that is gone
        self._errors.close()

    def _errors_text(self) -> str:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        return self._errors.read(4096).decode("utf-8", "replace").strip()


def _readable() -> list[str]:
    """Return the files and folders without which Python does not run."""
    prefix = sys.base_prefix
    paths = [os.path.realpath(sys._base_executable), f"{prefix}/lib", f"{prefix}/lib64", INSIDE]
    paths += ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def _bubblewrap(is_root: bool) -> list[str]:
    """Return the command that isolates what follows it. Raises SandboxError where bubblewrap is missing.

    For root, a user namespace would make things worse: the kernel would go on to see root in it, which a limit on
    processes does not bind. So root keeps the right to become an unused user, which the supervisor does in every child.
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
    """Count the threads on this machine: an upper bound on those of this user, which the limit counts together."""
    return int(re.search(r"/(\d+)", Path("/proc/loadavg").read_text())[1])
