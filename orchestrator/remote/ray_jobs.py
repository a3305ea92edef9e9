"""Sweeps as Ray jobs, over nothing but the dashboard's HTTP address: submit, find, stop, follow, read."""

import asyncio
import base64
import contextlib
import logging
import os
import shlex
import time
import uuid
from dataclasses import dataclass
from typing import Any

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.sweep_spec import SweepSpec

from .job_package import SPEC, environment, shipment
from .ray_token import ADVICE, show_token

PREFIX = "layersweep-"
"""Of a sweep's job; its name follows, and a number."""
READER = "reader-"
"""Of a job that reads files."""
STOP_SECONDS = 600
"""How long a stopped sweep may write checkpoints before Ray kills it."""
READ = """
import base64, sys, fsspec
for target in sys.argv[1:]:
    fs, path = fsspec.core.url_to_fs(target)
    print("file", base64.b64encode(fs.cat_file(path)).decode() if fs.exists(path) else "-")
"""
"""Prints files so that they pass through a log; needs nothing of ours on the cluster."""


@dataclass(frozen=True)
class Job:
    """One sweep on a cluster, as Ray's job table knows it."""

    id: str
    sweep: str
    folder: str
    """The sweep's, as the cluster's nodes see it."""
    status: str
    """Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""
    message: str
    started: float
    """Unix seconds; 0 before."""
    ended: float | None

    @property
    def over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Cluster:
    """A Ray cluster's jobs.

    Args:
        address: of its dashboard, such as http://head:8265.

    Raises:
        SpecError: nothing answers there, or it refuses the token. So do all methods.
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
        """Start a sweep, or go on with one.

        Args:
            spec: of the sweep; its output must mean something on the cluster.
            resume: go on with what an earlier run of this sweep left.
            fresh: discard it.
            variables: for its environment, see shipping.environment.
            extra: a folder of the user's to take along.

        Raises:
            SpecError: a sweep of this name is running there already.
        """
        before = self._ended(spec.name)
        # Numbered: Ray refuses a second job of the same id, so of two submits at the same moment one is refused.
        number = 1 + max((int(job.id.rpartition("-")[2]) for job in before), default=0)
        folder = spec.folder
        command = ["resume", folder, SPEC] if resume else ["run", SPEC, *(["--fresh"] if fresh else [])]
        with shipment(spec, extra) as staging:
            try:
                self._ask(
                    self.client.submit_job,
                    entrypoint=shlex.join(["python", "-m", "layersweep", *command, "--address=auto"]),
                    submission_id=f"{PREFIX}{spec.name}-{number}",
                    metadata={"job_name": spec.name, "sweep": spec.name, "folder": folder},
                    runtime_env={
                        "working_dir": staging,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | environment(variables),
                    },
                )
            except SpecError:
                self._ended(spec.name)  # says so if another came first meanwhile
                raise
        return self.find(spec.name)

    def _ended(self, sweep: str) -> list[Job]:
        """A sweep's jobs, all of them over.

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
        """The latest job of a sweep.

        Raises:
            SpecError: there is none of this name.
        """
        if found := self._jobs(sweep):
            return max(found, key=lambda job: int(job.id.rpartition("-")[2]))
        known = sorted({job.sweep for job in self._jobs()})
        raise SpecError([f"{sweep}: no such sweep at {self.address}; known there: {', '.join(known) or 'none'}"])

    def stop(self, job: Job) -> bool:
        """Ask a sweep to write its checkpoints and end; False where it had ended."""
        return self._ask(self.client.stop_job, job.id)

    def wait(self, job: Job) -> Job:
        """The job once it is over."""
        while not job.over:
            time.sleep(1)
            job = self.find(job.sweep)
        return job

    def logs(self, job: Job) -> str:
        """All that the driver has printed."""
        return self._ask(self.client.get_job_logs, job.id)

    def follow(self, job: Job) -> Job:
        """Print what the driver has printed and prints, until it ends."""

        async def tail() -> None:
            async for text in self.client.tail_job_logs(job.id):
                print(text, end="", flush=True)

        self._ask(asyncio.run, tail())
        return self.wait(job)

    def read(self, paths: list[str]) -> list[bytes | None]:
        """Files as the head node sees them; None where there is none.

        A laptop sees the dashboard alone, and the dashboard serves no files. So a job of a few lines prints them; it
        costs the head about a second of CPU.
        """
        self._clear_readers()
        entry, name = shlex.join(["python", "-c", READ, *paths]), f"{READER}{uuid.uuid4().hex[:12]}"
        job = self._ask(self.client.submit_job, entrypoint=entry, submission_id=name)
        while not (status := self._ask(self.client.get_job_status, job)).is_terminal():
            time.sleep(0.2)
        logs = self._ask(self.client.get_job_logs, job)
        found = [line.split()[1] for line in logs.splitlines() if line.startswith("file ")]
        if status != "SUCCEEDED" or len(found) < len(paths):
            raise SpecError([f"{self.address}: reading {paths[0]} there failed: {(logs.splitlines() or [''])[-1]}"])
        return [None if text == "-" else base64.b64decode(text) for text in found]

    def _clear_readers(self) -> None:
        """Take earlier jobs of `read` from Ray's table. Right after a job's end Ray would put it there again."""
        for job in self._ask(self.client.list_jobs):
            ended = (job.end_time or float("inf")) / 1000
            if (job.submission_id or "").startswith(READER) and ended < time.time() - 20:
                with contextlib.suppress(SpecError):  # somebody else has
                    self._ask(self.client.delete_job, job.submission_id)

    def _jobs(self, sweep: str | None = None) -> list[Job]:
        jobs = [job for job in self._ask(self.client.list_jobs) if (job.submission_id or "").startswith(PREFIX)]
        return [_job(job) for job in jobs if sweep in (None, job.metadata["sweep"])]

    def _ask(self, call: Any, *args: Any, **named: Any) -> Any:
        """A call over HTTP, with failures that a person can mend in one line."""
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
    )
