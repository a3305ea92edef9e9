"""Runs programs that a model wrote, and that nobody trusts, and says whether they pass their tests.

What holds in both backends: a program cannot start processes, send signals, open sockets, use more than its limits,
reach the tests or the expected outputs, or outlive its verdict; and another program's verdict does not depend on it.
`backend` starts sandboxes, `programs` has the kinds of tests, `inside` is the code that runs in a sandbox.

What remains: a program sees the inputs it is tested with, so it can tell a test by its input; it can use the CPU for
its whole limit; and a bug in the kernel's own isolation is not guarded against.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rollout.sandbox.backend import Limits, SandboxDied, SandboxError, Setting, Warden, choose, doctor
from rollout.sandbox.programs import AssertTests, CallTests, Program, ScriptTests, Verdict

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

    def __init__(
        self,
        setting: Setting = "auto",
        limits: Limits = Limits(),
        workers: int | None = None,
        programs_per_sandbox: int = 1,
    ):
        """Finds out which backend works, by running a program in it once per process.

        Args:
            setting: the backend, or `auto`.
            limits: what one start of a program may use.
            workers: how many programs run at a time; as many as this process may use cores, if not given.
            programs_per_sandbox: more than one saves most of the cost where programs are tiny. Each still has a
                process of its own, but a sandbox that fails takes the verdict of one of them with it, and none may
                write to a temporary folder.

        Raises:
            SandboxError: when the backend asked for does not work here, or none does.
        """
        self.backend = choose(setting)
        self._limits = limits
        self._workers = workers or len(os.sched_getaffinity(0))
        self._share = programs_per_sandbox

    def judge(self, programs: Sequence[Program]) -> list[Verdict]:
        """The verdict on each program, whatever the others do.

        Raises:
            SandboxError: when a sandbox cannot be started; this says nothing about any program.
        """
        share = min(self._share, max(1, -(-len(programs) // self._workers)))
        groups = [programs[start : start + share] for start in range(0, len(programs), share)]
        with ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox") as pool:
            return [verdict for verdicts in pool.map(self._judge_group, groups) for verdict in verdicts]

    def _judge_group(self, programs: Sequence[Program]) -> list[Verdict]:
        """Verdicts from one sandbox, started anew where a program took it down."""
        verdicts: list[Verdict] = []
        died: SandboxDied | None = None
        while len(verdicts) < len(programs):
            warden = Warden(self.backend, self._limits, may_write=self._share == 1)
            try:
                for program in programs[len(verdicts) :]:
                    verdicts.append(program.judge(warden.ask))
                    died = None
            except SandboxDied as error:
                if died is not None:  # twice, the second time as the first program of a fresh sandbox
                    verdicts.append(Verdict(False, True, f"no verdict: {error}"))
                died = None if died else error
            finally:
                warden.close()
        return verdicts
