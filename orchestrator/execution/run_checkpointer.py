"""Checkpoints of one run."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from layersweep.orchestrator.planning.plan import Run
from layersweep.workers.storage.run_store import RunStore

from .clients import TrainerGroup
from .context import SweepContext
from .failures import RunFailure, reach_files, reach_store, reason_of, retryable


@dataclass(frozen=True)
class Restored:
    """Where trainers stand after `RunCheckpointer.restore`."""

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of steps.parquet, one per step."""


class RunCheckpointer:
    """Writes and restores one run's checkpoints.

    Args:
        elapsed: gives the seconds that the run has taken until now.
    """

    def __init__(self, run: Run, context: SweepContext, elapsed: Callable[[], float]):
        self.run, self.context, self.elapsed = run, context, elapsed
        self.folder = context.plan.folder
        self.store = RunStore(self.folder, run.name)
        self.step = 0
        """Of the newest checkpoint; 0 where there is none."""
        self.rows: list[dict[str, Any]] = []
        """Rows of the steps since then."""
        self.cpu_seconds = 0.0
        """CPU seconds of checkpoints since `take_cpu_seconds` was called."""
        self.task: asyncio.Task[None] | None = None
        """The checkpoint written in the background, owned by the sweep's task group."""

    async def restore(self, trainers: TrainerGroup) -> Restored:
        """Put trainers into the state of the newest checkpoint that all ranks can read.

        Raises:
            StoreUnavailable: the checkpoints could not be read.
        """
        records, problems = await reach_files("the run's checkpoints", self.store.records)
        restored = Restored()
        for record in records:
            check = partial(trainers.checkpoint_problems, self.folder, record)
            if not (found := await reach_store("the run's checkpoints", check)):
                await reach_store("the run's checkpoints", partial(trainers.restore, self.folder, record))
                restored = Restored(record.step, record.rows)
                break
            problems += found
        for problem in problems:
            self.context.progress.say(f"{self.run.name}: {problem}; going on from step {restored.step}")
        self.step, self.rows = restored.step, []
        return restored

    async def save(self, trainers: TrainerGroup, step: int) -> None:
        """Write a checkpoint of the steps done so far.

        Raises:
            StoreUnavailable: it could not be written.
        """
        await self.wait()
        await reach_store("the run's checkpoints", partial(self._save, trainers, step))

    async def save_in_background(self, trainers: TrainerGroup, step: int) -> None:
        """Begin to write a checkpoint, beside the next rollout, once the one before is done."""
        await self.wait()
        self.task = self.context.tasks.create_task(self._save_if_possible(trainers, step))

    async def wait(self) -> None:
        """Wait for the checkpoint in the background."""
        if self.task:
            await asyncio.wait({self.task})

    def take_cpu_seconds(self) -> float:
        """CPU seconds that checkpoints have taken since the last call."""
        seconds, self.cpu_seconds = self.cpu_seconds, 0.0
        return seconds

    async def _save(self, trainers: TrainerGroup, step: int) -> None:
        rows, collector = list(self.rows), self.context.actors.collector
        saved = await trainers.save(self.folder, step)
        commit = partial(
            collector.commit, self.run.selection.name, self.run.seed, step, saved.checksums, rows, self.elapsed(),
            self.context.plan.spec.recovery.keep,
        )  # fmt: skip
        committing = await reach_store("the run's checkpoints", commit)
        self.cpu_seconds += committing + saved.cpu_seconds
        self.step, self.rows = step, self.rows[len(rows) :]

    async def _save_if_possible(self, trainers: TrainerGroup, step: int) -> None:
        """One that fails costs nothing but the steps since the one before: no second attempt, the trainers go on."""
        try:
            await self._save(trainers, step)
        except (ray.exceptions.RayError, RunFailure) as error:
            if not retryable(error):  # else the run's own next call meets it too, and recovers
                self.context.progress.say(f"{self.run.name}: no checkpoint of step {step}: {reason_of(error)}")
