"""Sweeps as Ray jobs, through the dashboard's HTTP address alone: submit, find, stop, follow, read."""

import asyncio
import base64
import contextlib
import logging
import os
import shlex
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

from layersweep.orchestrator.spec.errors import REFUSED, SpecError
from layersweep.orchestrator.spec.sweep_spec import SweepSpec

from .job_package import BEGUN, SPEC, job_environment, job_package
from .ray_token import ADVICE, show_token

PREFIX = "layersweep-"
"""First part of a job's id; the sweep's name follows, and a number."""
READER = "reader-"
"""First part of the id of a job that reads files."""
STOP_SECONDS = 600
"""Seconds that a stopped sweep may write checkpoints before Ray kills it."""
AGENT_SECONDS = 90.0
"""Seconds that a head node's job agent may take to come up, beside those that Ray waits itself."""
BEGIN_SECONDS = 600.0
"""Seconds that `submit` waits for the driver to begin the sweep."""
PYTHON = (
    "python=$(tr '\\0' '\\n' </proc/$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$PPID/status)/cmdline"
    " | sed -n 's/^--python_worker_command=\\([^ ]*\\).*/\\1/p'); exec \"${python:-python}\""
)
"""Start of a job's shell command: the interpreter that the cluster's own Ray starts its workers with.

The shell's parent is Ray's JobSupervisor, a worker, and its parent the raylet, whose arguments say it. The PATH of a
head that was started without its environment being activated leads to another Python, or none."""
READ = """
import base64, sys, fsspec
for target in sys.argv[1:]:
    local = target.startswith("/")  # also where `::` is in it, which chains URIs
    fs, path = (fsspec.filesystem("file"), target) if local else fsspec.core.url_to_fs(target)
    print("file", base64.b64encode(fs.cat_file(path)).decode() if fs.exists(path) else "-")
"""
"""Program that prints files so that they pass through a log; the cluster needs no layersweep for it."""


@dataclass(frozen=True)
class Job:
    """One start of a sweep on a cluster, as Ray's job table has it."""

    id: str
    sweep: str
    folder: str
    """Folder of the sweep, as the cluster's nodes see it."""
    status: str
    """Status in Ray's words: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
    message: str
    started: float
    """Start in Unix seconds; 0 before."""
    ended: float | None
    exit_code: int | None
    """Exit code of the driver; None before its end, and where Ray ended it."""

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class _NoAgent(Exception):
    """The head node has no agent yet that takes jobs."""


class Cluster:
    """Jobs of a Ray cluster.

    Args:
        address: of its dashboard, such as http://head:8265.

    Raises:
        SpecError: nothing answers there, or it refuses the token. All methods raise it likewise.
    """

    def __init__(self, address: str):
        self.address = address if "://" in address else f"http://{address}"
        show_token(self.address)
        # Ray lets its environment variables win over an address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # not a line for each package and connection
        self.client = self._ask(JobSubmissionClient, self.address)

    def submit(self, spec: SweepSpec, resume: bool, fresh: bool, variables: list[str], extra: str | None) -> Job:
        """Submit the start of a sweep, or of going on with one.

        Args:
            spec: of the sweep; its output must mean something on the cluster.
            resume: go on with what an earlier run of this sweep left.
            fresh: discard it.
            variables: for its environment, see `job_package.job_environment`.
            extra: a folder of the user's to take along, see `job_package.job_package`.

        Raises:
            SpecError: a sweep of this name is running there already; or see `job_package`.
        """
        environment = job_environment(variables)
        before = self._ended(spec.name)
        # Numbered: Ray refuses a second job of the same id, so of two submits at the same moment one is refused.
        number = 1 + max((int(job.id.rpartition("-")[2]) for job in before), default=0)
        job_id, folder = f"{PREFIX}{spec.name}-{number}", spec.folder
        command = ["resume", folder, SPEC] if resume else ["run", SPEC, *(["--fresh"] if fresh else [])]
        with job_package(spec, extra) as package:
            try:
                self._ask(
                    self.client.submit_job,
                    entrypoint=f"{PYTHON} {shlex.join(['-m', 'layersweep', *command, '--address=auto'])}",
                    submission_id=job_id,
                    metadata={"job_name": spec.name, "sweep": spec.name, "folder": folder},
                    runtime_env={
                        "working_dir": package,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | environment,
                    },
                )
            except SpecError:
                self._ended(spec.name)  # says so if another came first meanwhile
                raise
        return next(job for job in self._jobs(spec.name) if job.id == job_id)

    def wait_until_begun(self, job: Job, seconds: float = BEGIN_SECONDS) -> Job:
        """Wait until the driver has begun the sweep, or has ended, with a line on standard error now and then.

        Until then it may still refuse: the data are not there, the folder holds a sweep already, the cluster is too
        small. Returns the job; `has_begun` tells whether it has.

        Args:
            seconds: after which it is left to itself.
        """
        start = said = time.monotonic()
        while not job.over and not self.has_begun(job) and time.monotonic() - start < seconds:
            if time.monotonic() - said > 10:
                said = time.monotonic()
                waited = f"{said - start:.0f} s, at most {seconds:.0f}"
                print(f"{job.id}: {job.status.lower()}, waiting for it to begin ({waited})", file=sys.stderr)
            time.sleep(0.5)
            job = self.renewed(job)
        return job

    def has_begun(self, job: Job) -> bool:
        """Return whether the driver has begun the sweep, as its log says."""
        return job.status != "PENDING" and BEGUN in self.logs(job)

    def _ended(self, sweep: str) -> list[Job]:
        """Return a sweep's jobs, all of them over.

        Raises:
            SpecError: one is not.
        """
        jobs = self._jobs(sweep)
        if running := [job for job in jobs if not job.over]:
            raise SpecError(
                [f"name: {sweep} is running there already, as {running[0].id}; stop it, or choose another name"]
            )
        return jobs

    def find(self, sweep: str) -> Job:
        """Return the latest job of a sweep that was not refused by its driver; where all were, the latest.

        Raises:
            SpecError: there is none of this name.
        """
        jobs = self._jobs(sweep)
        if found := [job for job in jobs if job.exit_code != REFUSED] or jobs:
            return max(found, key=lambda job: int(job.id.rpartition("-")[2]))
        known = sorted({job.sweep for job in self._jobs()})
        raise SpecError([f"{sweep}: no such sweep at {self.address}; known there: {', '.join(known) or 'none'}"])

    def renewed(self, job: Job) -> Job:
        """Return the job as it is now."""
        return next(other for other in self._jobs(job.sweep) if other.id == job.id)

    def stop(self, job: Job) -> bool:
        """Ask a sweep to write its checkpoints and end; return False where it had ended."""
        return self._ask(self.client.stop_job, job.id)

    def wait(self, job: Job) -> Job:
        """Wait for the end of a job and return it."""
        while not job.over:
            time.sleep(1)
            job = self.renewed(job)
        return job

    def logs(self, job: Job) -> str:
        """Return the text that the driver has printed."""
        return self._ask(self.client.get_job_logs, job.id)

    def last_words(self, job: Job, lines: int = 12) -> str:
        """Return the reason for which a driver ended, in its own words: its last lines, or Ray's message."""
        printed = [line for line in self.logs(job).splitlines() if not line.startswith("Running entrypoint for job")]
        own = [line for line in printed if line.startswith("layersweep: ")]
        return "\n".join(own[-lines:] or printed[-lines:] or [job.message])

    def follow(self, job: Job) -> Job:
        """Print the driver's output, from its start to its end; return the job."""

        async def tail() -> None:
            async for text in self.client.tail_job_logs(job.id):
                print(text, end="", flush=True)

        self._ask(asyncio.run, tail())
        return self.wait(job)

    def read(self, paths: list[str]) -> list[bytes | None]:
        """Read files as the head node sees them; None where one does not exist.

        A laptop sees the dashboard alone, and the dashboard serves no files. So a job of a few lines prints them; it
        costs the head about a second of CPU.
        """
        self._clear_readers()
        entry, name = f"{PYTHON} {shlex.join(['-c', READ, *paths])}", f"{READER}{uuid.uuid4().hex[:12]}"
        job = self._ask(self.client.submit_job, entrypoint=entry, submission_id=name)
        while not (status := self._ask(self.client.get_job_status, job)).is_terminal():
            time.sleep(0.2)
        logs = self._ask(self.client.get_job_logs, job)
        found = [line.split()[1] for line in logs.splitlines() if line.startswith("file ")]
        if status != "SUCCEEDED" or len(found) < len(paths):
            raise SpecError([f"{self.address}: reading {paths[0]} there failed: {(logs.splitlines() or [''])[-1]}"])
        return [None if text == "-" else base64.b64decode(text) for text in found]

    def _clear_readers(self) -> None:
        """Delete earlier jobs of `read` from Ray's table. Right after a job's end Ray would put it there again."""
        for job in self._ask(self.client.list_jobs):
            ended = (job.end_time or float("inf")) / 1000
            if (job.submission_id or "").startswith(READER) and ended < time.time() - 20:
                with contextlib.suppress(SpecError):  # it is deleted already
                    self._ask(self.client.delete_job, job.submission_id)

    def _jobs(self, sweep: str | None = None) -> list[Job]:
        jobs = [job for job in self._ask(self.client.list_jobs) if (job.submission_id or "").startswith(PREFIX)]
        return [_job(job) for job in jobs if sweep in (None, job.metadata["sweep"])]

    def _ask(self, call: Any, *args: Any, **named: Any) -> Any:
        """Make a call over HTTP; wait for a job agent that is still starting.

        Raises:
            SpecError: with the cause and the remedy in one line.
        """
        until, said = time.monotonic() + AGENT_SECONDS, False
        while True:
            try:
                return self._try(call, *args, **named)
            except _NoAgent as error:
                if time.monotonic() > until:
                    raise SpecError([
                        f"--address {self.address}: its head node has no job agent after {AGENT_SECONDS:.0f} s more; "
                        "another Ray there may hold the agent's port, which `ray start` takes as "
                        "--dashboard-agent-listen-port; dashboard_agent.log in Ray's folder says why"
                    ]) from error  # fmt: skip
            if not said:
                print(f"{self.address}: waiting for the head node's job agent, which is starting", file=sys.stderr)
            said = True
            time.sleep(1)

    def _try(self, call: Any, *args: Any, **named: Any) -> Any:
        from ray.exceptions import AuthenticationError

        try:
            return call(*args, **named)
        except AuthenticationError as error:
            first = " ".join(str(error).split("\n")[0].split())
            raise SpecError([f"--address {self.address}: {first}; {ADVICE}"]) from error
        except OSError as error:  # all that requests and aiohttp raise of a connection is one
            raise SpecError(
                [f"--address {self.address}: no Ray dashboard answers there; it is at port 8265 of the head node"]
            ) from error
        except RuntimeError as error:
            if "No available agent" in str(error):
                raise _NoAgent from error
            raise SpecError([f"--address {self.address}: {' '.join(str(error).split())[:300]}"]) from error


def _job(details: Any) -> Job:
    return Job(
        details.submission_id,
        details.metadata["sweep"],
        details.metadata["folder"],
        details.status.value,
        " ".join((details.message or "").split()),
        (details.start_time or 0) / 1000,
        details.end_time / 1000 if details.end_time else None,
        details.driver_exit_code,
    )
