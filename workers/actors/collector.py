"""The collector as a Ray actor: rewards, evaluations and checkpoint records in; run stores and tables out."""

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from layersweep.policies.selection import run_name
from layersweep.workers.storage.files import read_bytes, write_atomically
from layersweep.workers.storage.retries import retried
from layersweep.workers.storage.run_store import CheckpointRecord, RunStore, runs_of
from layersweep.workers.storage.tables import BY_SUITE, CONTRIBUTION, SCORES, STEPS
from layersweep.workers.trackers import build
from layersweep.workers.trackers.config import TrackingConfig

from .portable_errors import portable_errors

logger = logging.getLogger(__name__)

WRITE_COST_FACTOR = 20
"""The tables are written again after this many times the seconds that it took, at the earliest."""


def locations_file(folder: str) -> str:
    return f"{folder}/checkpoints/places.json"


@portable_errors
class Collector:
    """Aggregates a sweep into its tables while it runs, and writes its run stores.

    It begins with what the run stores hold, so that it may be killed and started again at any moment: what it lacks
    then (rows since a run's last checkpoint) comes with that run's next one. Whatever comes twice counts once.

    Args:
        folder: where the files go; a path or an fsspec URI.
        runs: what is known of each run before it starts: selection, kind, layer, depth, seed, learning_rate, ...
        summarise: (runs, steps, scores) to the contribution table; given by the orchestrator.
        by_suite: (runs, scores) to the table of contributions by suite, likewise.
        steps: of every run; scores on the `final` split count at the end alone.
        sweep, tracking: its name, and the spec's section.
        interval: seconds between two writes at least, but for the last.

    Raises:
        OSError: the folder could not be read, repeatedly.
    """

    def __init__(
        self,
        folder: str,
        runs: list[dict[str, Any]],
        summarise: Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame], pd.DataFrame],
        by_suite: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame],
        steps: int,
        sweep: str,
        tracking: TrackingConfig,
        interval: float = 5.0,
    ):
        self.folder, self.last, self.interval = folder, steps, interval
        self.summarise, self.by_suite = summarise, by_suite
        self.runs: dict[tuple[str, int], dict[str, Any]] = {}
        self.steps: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
        self.scores: dict[tuple[str, int, int, str, str], pd.DataFrame] = {}
        # Ray starts an actor again that dies, but not one whose constructor raises.
        retried(f"reading {folder}", partial(self._read_stores, runs))
        self.trackers = build(tracking, sweep, folder)
        self.next_write = 0.0

    def _read_stores(self, runs: list[dict[str, Any]]) -> None:
        for run in runs:
            self.add_run(run)
        for name in runs_of(self.folder):  # those over several layers, which are known only once they are picked
            metadata = RunStore(self.folder, name).metadata()
            if metadata and (metadata["selection"], metadata["seed"]) not in self.runs:
                self.add_run(metadata)
        self.locations: dict[str, str] = json.loads(read_bytes(locations_file(self.folder)) or b"{}")
        """Host and GPUs of each engine, and of each run that has trainers."""

    def __repr__(self) -> str:
        return "Collector()"

    def alive(self) -> None:
        """Answer a health check."""

    def add_run(self, run: dict[str, Any]) -> None:
        """Add a run, with all that its run store has of it."""
        selection, seed = run["selection"], run["seed"]
        store = self._store(selection, seed)
        self.runs[selection, seed] = run | {"status": "running", "reason": None} | store.metadata()
        records, _ = store.records()
        rows = records[0].rows if records else []
        # A store of another version may have columns that are none any more.
        self.steps[selection, seed] = {row["step"]: {k: v for k, v in row.items() if STEPS.has(k)} for row in rows}
        for (step, split, suite), frame in store.scores():
            if split == "selection" or step in (0, self.last):
                self.scores[selection, seed, step, split, suite] = SCORES.frame(frame)

    def record_step(self, selection: str, seed: int, step: int, metrics: dict[str, float]) -> None:
        """Take one row of steps.parquet, as soon as the step is done; `commit` sends it once more, for good.

        Raises:
            UnknownColumn: a metric that steps.parquet has no column for.
        """
        row = {"selection": selection, "seed": seed, "step": step, **metrics}
        STEPS.check(row)
        self.steps[selection, seed][step] = row
        for tracker in self.trackers:
            tracker.step(self.runs[selection, seed], row)
        self._write_if_due()

    def commit(
        self, selection: str, seed: int, step: int, files: dict[str, str], rows: list[dict[str, Any]], seconds: float,
        keep: int,
    ) -> float:  # fmt: skip
        """Make a checkpoint count. Return the CPU seconds that it took.

        Args:
            files: name and checksum of each rank's file, which are written already.
            rows: of the steps since the last commit at least, as given to record_step; they come twice because this
                actor may have been started again since.
            keep: how many of the run's checkpoints.

        Raises:
            ValueError: steps are missing.
            UnknownColumn: a metric that steps.parquet has no column for.
            OSError: the record could not be written.
        """
        cpu, mine = time.process_time(), self.steps[selection, seed]
        for row in rows:
            STEPS.check(row)
        mine |= {row["step"]: {"selection": selection, "seed": seed} | row for row in rows}
        if missing := [k for k in range(step) if k not in mine]:
            raise ValueError(f"{selection} seed {seed}: no record of step {missing[0]} at the checkpoint of {step}")
        record = CheckpointRecord(step, files, [mine[k] for k in range(step)], seconds)
        self._store(selection, seed).commit(record, keep)
        return time.process_time() - cpu

    def record_scores(self, selection: str, seed: int, step: int, columns: dict[str, np.ndarray]) -> None:
        """Take one suite of one evaluation; it is in the run store once this returns.

        Raises:
            UnknownColumn: a column that scores.parquet does not have.
        """
        frame = SCORES.frame(pd.DataFrame({"selection": selection, "seed": seed, "step": step, **columns}))
        split, suite = columns["split"][0], columns["suite"][0]
        self._store(selection, seed).write_scores(step, split, suite, frame)
        self.scores[selection, seed, step, split, suite] = frame
        self._write_if_due()

    def update_run(self, selection: str, seed: int, **changes: Any) -> None:
        """Take status, reason, or what became known of a run; in the run store once this returns."""
        run = self.runs[selection, seed]
        run.update(changes)
        self._store(selection, seed).write_metadata(run)
        self._write_if_due()

    def set_location(self, actor: str, hosts: str | None) -> None:
        """Set host and GPUs of an engine or of a run's trainers; None where there are none."""
        self.locations.pop(actor, None)
        if hosts:
            self.locations[actor] = hosts
        self._write_if_due()

    def all_scores(self) -> pd.DataFrame:
        """Return the content of scores.parquet as of now."""
        return self._frames()[1]

    def table(self) -> pd.DataFrame:
        """Return the contribution table as of now."""
        return self.summarise(pd.DataFrame(self.runs.values()), *self._frames())

    def write(self) -> None:
        """Write all tables, and the actors' locations, each file replaced atomically.

        Raises:
            OSError: they could not be written.
        """
        began = time.monotonic()
        steps, scores = self._frames()
        runs = pd.DataFrame(self.runs.values())
        table, by_suite = self.summarise(runs, steps, scores), self.by_suite(runs, scores)
        for schema, frame in ((STEPS, steps), (SCORES, scores), (BY_SUITE, by_suite), (CONTRIBUTION, table)):
            write_atomically(f"{self.folder}/{schema.name}.parquet", partial(schema.write, frame))
        write_atomically(locations_file(self.folder), lambda file: file.write(json.dumps(self.locations).encode()))
        for tracker in self.trackers:
            tracker.table(table)
        now = time.monotonic()
        self.next_write = now + max(self.interval, WRITE_COST_FACTOR * (now - began))

    def close(self) -> None:
        """Write the tables for the last time, and close the trackers."""
        self.locations.clear()
        self.write()
        for tracker in self.trackers:
            tracker.close()

    def _write_if_due(self) -> None:
        """Write the tables if it is time. A write that fails loses nothing: the next one has all of it."""
        if time.monotonic() > self.next_write:
            try:
                self.write()
            except OSError as error:
                logger.warning("the tables in %s could not be written: %s", self.folder, error)
                self.next_write = time.monotonic() + self.interval

    def _store(self, selection: str, seed: int) -> RunStore:
        return RunStore(self.folder, run_name(selection, seed))

    def _frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the contents of steps.parquet and scores.parquet as of now."""
        rows = [row for run in self.steps.values() for _, row in sorted(run.items())]
        scores = pd.concat(self.scores.values(), ignore_index=True) if self.scores else SCORES.frame([])
        return STEPS.frame(rows), scores
