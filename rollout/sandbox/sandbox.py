"""Sandbox that judges batches of programs in parallel."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .backend import Setting, select_backend
from .process import Limits, SandboxDied, SandboxProcess
from .programs import Program, Verdict


class Sandbox:
    """Judge of batches of programs, in parallel. Holds nothing between batches; may be used from any thread."""

    def __init__(self, setting: Setting = "auto", limits: Limits | None = None, workers: int | None = None):
        """Find out which backend works, by running a program in it once per process.

        Args:
            setting: the backend, or `auto`.
            limits: of one start of a program; the defaults of Limits, if not given.
            workers: programs that run at a time; one for each core that this process may use, if not given.

        Raises:
            SandboxError: when the backend asked for does not work here, or none does.
        """
        self.backend = select_backend(setting)
        self._limits = limits or Limits()
        self._workers = workers or len(os.sched_getaffinity(0))

    def judge(self, programs: Sequence[Program]) -> list[Verdict]:
        """Return the verdict on each program, whatever the others do.

        Raises:
            SandboxError: when a sandbox cannot be started; this says nothing about any program.
        """
        pending = deque(enumerate(programs))
        verdicts: dict[int, Verdict] = {}
        with ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox") as pool:
            workers = [pool.submit(self._work, pending, verdicts) for _ in range(min(self._workers, len(programs)))]
        for worker in workers:
            worker.result()
        return [verdicts[index] for index in range(len(programs))]

    def _work(self, pending: deque[tuple[int, Program]], verdicts: dict[int, Verdict]) -> None:
        """Judge programs one after another, in one sandbox as long as it stays as it was.

        A program that takes its sandbox down is tried once more, in a new one: the cause may lie elsewhere.
        """
        sandbox: SandboxProcess | None = None
        try:
            while pending:
                try:
                    index, program = pending.popleft()
                except IndexError:  # another worker took it
                    return
                for _ in range(2):
                    sandbox = sandbox or SandboxProcess(self.backend, self._limits)
                    try:
                        verdicts[index] = program.judge(sandbox.run_case)
                        break
                    except SandboxDied as error:
                        verdicts[index] = Verdict(False, True, f"no verdict: {error}")
                        sandbox.close()
                        sandbox = None
                if sandbox is not None and sandbox.dirty:
                    sandbox.close()
                    sandbox = None
        except BaseException:
            pending.clear()
            raise
        finally:
            if sandbox is not None:
                sandbox.close()
