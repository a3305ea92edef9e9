"""Runs programs that a model wrote, and that nobody trusts, and says whether they pass their tests.

What holds in both backends: a program cannot start processes, send signals, open sockets, use more than its limits,
reach the tests or the expected outputs, or outlive its verdict; and another program's verdict does not depend on it.
`backend` starts sandboxes, `programs` has the kinds of tests, `inside` is the code that runs in a sandbox.

What remains: a program sees the inputs it is tested with, so it can tell a test by its input; it can use the CPU for
its whole limit; and a bug in the kernel's own isolation is not guarded against.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .backend import Limits, SandboxDied, SandboxError, SandboxProcess, Setting, choose, doctor
from .programs import AssertTests, CallTests, Program, ScriptTests, Verdict

__all__ = [
    "AssertTests",
    "CallTests",
    "Limits",
    "Program",
    "Sandbox",
    "SandboxError",
    "ScriptTests",
    "Setting",
    "Verdict",
    "doctor",
]


class Sandbox:
    """Judges batches of programs in parallel. Holds nothing between batches; may be used from any thread."""

    def __init__(self, setting: Setting = "auto", limits: Limits | None = None, workers: int | None = None):
        """Finds out which backend works, by running a program in it once per process.

        Args:
            setting: the backend, or `auto`.
            limits: what one start of a program may use; the defaults of Limits, if not given.
            workers: how many programs run at a time; as many as this process may use cores, if not given.

        Raises:
            SandboxError: when the backend asked for does not work here, or none does.
        """
        self.backend = choose(setting)
        self._limits = limits or Limits()
        self._workers = workers or len(os.sched_getaffinity(0))

    def judge(self, programs: Sequence[Program]) -> list[Verdict]:
        """The verdict on each program, whatever the others do.

        Raises:
            SandboxError: when a sandbox cannot be started; this says nothing about any program.
        """
        todo = deque(enumerate(programs))
        verdicts: dict[int, Verdict] = {}
        with ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox") as pool:
            workers = [pool.submit(self._work, todo, verdicts) for _ in range(min(self._workers, len(programs)))]
        for worker in workers:
            worker.result()
        return [verdicts[at] for at in range(len(programs))]

    def _work(self, todo: deque[tuple[int, Program]], verdicts: dict[int, Verdict]) -> None:
        """Judges programs one after another, in one sandbox as long as it stays as it was.

        A program that takes its sandbox down is tried once more, alone: it may not have been its own fault.
        """
        warden: SandboxProcess | None = None
        try:
            while todo:
                try:
                    at, program = todo.popleft()
                except IndexError:  # another worker took it
                    return
                for _ in range(2):
                    warden = warden or SandboxProcess(self.backend, self._limits)
                    try:
                        verdicts[at] = program.judge(warden.ask)
                        break
                    except SandboxDied as error:
                        verdicts[at] = Verdict(False, True, f"no verdict: {error}")
                        warden.close()
                        warden = None
                if warden is not None and warden.dirty:
                    warden.close()
                    warden = None
        except BaseException:
            todo.clear()
            raise
        finally:
            if warden is not None:
                warden.close()
