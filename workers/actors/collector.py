"""The collector as a Ray actor: every step's rewards and every evaluation, the ledger, and the three parquet files."""

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from layersweep.workers.storage.files import read_bytes, write_atomically
from layersweep.workers.storage.run_store import CheckpointRecord, RunStore, runs_of
from layersweep.workers.trackers import build
from layersweep.workers.trackers.config import TrackingConfig

from .portable_errors import portable_errors

logger = logging.getLogger(__name__)

STEP_COLUMNS = (
    "selection", "seed", "step", "reward_mean", "reward_std", "no_signal_fraction", "loss", "kl", "entropy",
    "clip_fraction", "grad_norm", "update_norm", "logprob_mismatch", "response_tokens", "truncated_fraction",
    "format_fraction", "learning_rate", "tokens", "pushed_bytes", "rollout_seconds", "reward_seconds",
    "update_seconds", "sync_seconds", "wait_seconds", "generate_cpu_seconds", "reward_cpu_seconds",
    "update_cpu_seconds", "push_cpu_seconds", "checkpoint_cpu_seconds", "driver_cpu_seconds", "success_rate",
    "episode_length", "invalid_action_rate", "step_groups_larger_than_one", "lost_episodes", "given_up_episodes",
    "cut_observations", "gradient_agreement", "unjudged_fraction",
)  # fmt: skip
SCORE_COLUMNS = (
    "selection", "seed", "step", "suite", "split", "prompt", "sample", "score", "response_tokens", "truncated",
    "format_ok", "category", "losses",
)  # fmt: skip
SPARING = 20
"""The tables are written again after this many times the seconds that it took, at the earliest."""


def places_file(folder: str) -> str:
    return f"{folder}/checkpoints/places.json"


@portable_errors
class Collector:
    """Aggregates a sweep into its tables while it runs, and keeps its ledger.

    It begins with what the ledger holds, so that it may be killed and started again at any moment: what it then lacks
    (rows since a run's last checkpoint) comes with that run's next one. Whatever comes twice counts once.

    Args:
        folder: where the files go; a path or an fsspec URI.
        runs: what is known of each run before it starts: selection, kind, layer, depth, seed, learning_rate, ...
        summarise: (runs, steps, scores) to the contribution table; given by the orchestrator.
        steps: of every run; scores on the `final` split count at the end alone.
        sweep, tracking: its name, and the spec's section.
        interval: seconds between two writes at least, but for the last.
    """

    def __init__(
        self,
        folder: str,
        runs: list[dict[str, Any]],
        summarise: Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame], pd.DataFrame],
        steps: int,
        sweep: str,
        tracking: TrackingConfig,
        interval: float = 5.0,
    ):
        self.folder, self.summarise, self.last, self.interval = folder, summarise, steps, interval
        self.runs: dict[tuple[str, int], dict[str, Any]] = {}
        self.steps: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
        self.scores: dict[tuple[str, int, int, str, str], pd.DataFrame] = {}
        for run in runs:
            self.add_run(run)
        for name in runs_of(folder):  # those over several layers, which are known only once they are picked
            facts = RunStore(folder, name).facts()
            if facts and (facts["selection"], facts["seed"]) not in self.runs:
                self.add_run(facts)
        self.places: dict[str, str] = json.loads(read_bytes(places_file(folder)) or b"{}")
        """Host and GPUs of each engine, and of each run that has trainers."""
        self.trackers = build(tracking, sweep, folder)
        self.due = 0.0

    def __repr__(self) -> str:
        return "Collector()"

    def alive(self) -> None:
        """Answer a health check."""

    def add_run(self, run: dict[str, Any]) -> None:
        """A run, with all that the ledger has of it."""
        selection, seed = run["selection"], run["seed"]
        ledger = self._ledger(selection, seed)
        self.runs[selection, seed] = run | {"status": "running", "reason": None} | ledger.facts()
        records, _ = ledger.records()
        self.steps[selection, seed] = {row["step"]: row for row in records[0].rows} if records else {}
        for (step, split, suite), frame in ledger.scores():
            if split == "selection" or step in (0, self.last):
                self.scores[selection, seed, step, split, suite] = frame

    def record_step(self, selection: str, seed: int, step: int, metrics: dict[str, float]) -> None:
        row = {"selection": selection, "seed": seed, "step": step, **metrics}
        self.steps[selection, seed][step] = row
        for tracker in self.trackers:
            tracker.step(row)
        self._write_if_due()

    def commit(
        self, selection: str, seed: int, step: int, files: dict[str, str], rows: list[dict[str, Any]], seconds: float,
        keep: int,
    ) -> float:  # fmt: skip
        """A checkpoint counts from here on. Returns the CPU seconds that it took.

        Args:
            files: name and checksum of each rank's file, which are written already.
            rows: of the steps since the last commit at least, as given to record_step.
            keep: how many of the run's checkpoints.

        Raises:
            ValueError: steps are missing.
            OSError: the record could not be written.
        """
        cpu, mine = time.process_time(), self.steps[selection, seed]
        mine |= {row["step"]: {"selection": selection, "seed": seed} | row for row in rows}
        if missing := [k for k in range(step) if k not in mine]:
            raise ValueError(f"{selection} seed {seed}: no record of step {missing[0]} at the checkpoint of {step}")
        record = CheckpointRecord(step, files, [mine[k] for k in range(step)], seconds)
        self._ledger(selection, seed).commit(record, keep)
        return time.process_time() - cpu

    def record_scores(self, selection: str, seed: int, step: int, columns: dict[str, np.ndarray]) -> None:
        """One suite of one evaluation; in the ledger once this returns."""
        frame = pd.DataFrame({"selection": selection, "seed": seed, "step": step, **columns})[list(SCORE_COLUMNS)]
        split, suite = columns["split"][0], columns["suite"][0]
        self._ledger(selection, seed).write_scores(step, split, suite, frame)
        self.scores[selection, seed, step, split, suite] = frame
        self._write_if_due()

    def update_run(self, selection: str, seed: int, **facts: Any) -> None:
        """Status, reason, or what became known of a run; in the ledger once this returns."""
        run = self.runs[selection, seed]
        run.update(facts)
        self._ledger(selection, seed).write_facts(run)
        self._write_if_due()

    def place(self, who: str, where: str | None) -> None:
        """Set host and GPUs of an engine or of a run's trainers; None where there are none."""
        self.places.pop(who, None)
        if where:
            self.places[who] = where
        self._write_if_due()

    def all_scores(self) -> pd.DataFrame:
        """The content of scores.parquet as of now."""
        return self._frames()[1]

    def table(self) -> pd.DataFrame:
        """The contribution table as of now."""
        return self.summarise(pd.DataFrame(self.runs.values()), *self._frames())

    def write(self) -> None:
        """All three tables, and who is where, each file replaced atomically.

        Raises:
            OSError: they could not be written.
        """
        began = time.monotonic()
        steps, scores = self._frames()
        tables = {"steps": steps, "scores": scores, "contribution": self.table()}
        for name, frame in tables.items():
            write_atomically(f"{self.folder}/{name}.parquet", partial(frame.to_parquet, index=False))
        write_atomically(places_file(self.folder), lambda file: file.write(json.dumps(self.places).encode()))
        for tracker in self.trackers:
            tracker.table(tables["contribution"])
        now = time.monotonic()
        self.due = now + max(self.interval, SPARING * (now - began))

    def close(self) -> None:
        """The last write, and the trackers' end."""
        self.places.clear()
        self.write()
        for tracker in self.trackers:
            tracker.close()

    def _write_if_due(self) -> None:
        """The tables follow from the ledger: where they cannot be written now, a later write has all of it."""
        if time.monotonic() > self.due:
            try:
                self.write()
            except OSError as error:
                logger.warning("the tables in %s could not be written: %s", self.folder, error)
                self.due = time.monotonic() + self.interval

    def _ledger(self, selection: str, seed: int) -> RunStore:
        return RunStore(self.folder, f"{selection}-seed{seed}")

    def _frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = [row for run in self.steps.values() for _, row in sorted(run.items())]
        steps = pd.DataFrame(rows, columns=list(STEP_COLUMNS))
        empty = pd.DataFrame(columns=list(SCORE_COLUMNS))
        return steps, pd.concat(self.scores.values(), ignore_index=True) if self.scores else empty
