"""The collector as a Ray actor: every step's rewards and every evaluation, and the three parquet files."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .files import write_atomically

STEP_COLUMNS = (
    "selection", "seed", "step", "reward_mean", "reward_std", "no_signal_fraction", "loss", "kl", "entropy",
    "clip_fraction", "grad_norm", "update_norm", "logprob_mismatch", "response_tokens", "truncated_fraction",
    "format_fraction", "learning_rate", "tokens", "pushed_bytes", "rollout_seconds", "reward_seconds",
    "update_seconds", "sync_seconds", "wait_seconds", "generate_cpu_seconds", "reward_cpu_seconds",
    "update_cpu_seconds", "push_cpu_seconds", "driver_cpu_seconds", "success_rate", "episode_length",
    "invalid_action_rate", "step_groups_larger_than_one", "lost_episodes", "given_up_episodes", "cut_observations",
    "gradient_agreement",
)  # fmt: skip
SCORE_COLUMNS = (
    "selection", "seed", "step", "suite", "split", "prompt", "sample", "score", "response_tokens", "truncated",
    "format_ok", "category", "losses",
)  # fmt: skip


class Collector:
    """Aggregates a sweep into its tables while it runs.

    Args:
        folder: where the files go; a path or an fsspec URI.
        runs: what is known of each run before it starts: selection, kind, layer, depth, seed, learning_rate, ...
        summarise: (runs, steps, scores) to the contribution table; given by the orchestrator.
        interval: seconds between two writes at least, but for the last.
    """

    def __init__(
        self,
        folder: str,
        runs: list[dict[str, Any]],
        summarise: Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame], pd.DataFrame],
        interval: float = 5.0,
    ):
        self.folder, self.summarise, self.interval = folder, summarise, interval
        self.runs = {(run["selection"], run["seed"]): run | {"status": "running", "reason": None} for run in runs}
        self.steps: list[dict[str, Any]] = []
        self.scores: list[pd.DataFrame] = []
        self.written = 0.0

    def __repr__(self) -> str:
        return "Collector()"

    def record_step(self, selection: str, seed: int, step: int, metrics: dict[str, float]) -> None:
        self.steps.append({"selection": selection, "seed": seed, "step": step, **metrics})
        self._write_if_due()

    def record_scores(self, selection: str, seed: int, step: int, columns: dict[str, np.ndarray]) -> None:
        frame = pd.DataFrame({"selection": selection, "seed": seed, "step": step, **columns})
        self.scores.append(frame[list(SCORE_COLUMNS)])
        self._write_if_due()

    def update_run(self, selection: str, seed: int, **facts: Any) -> None:
        """Status, reason, or what became known of a run."""
        self.runs[selection, seed].update(facts)
        self._write_if_due()

    def add_run(self, run: dict[str, Any]) -> None:
        """A run that was not known at the start."""
        self.runs[run["selection"], run["seed"]] = run | {"status": "running", "reason": None}

    def all_scores(self) -> pd.DataFrame:
        """The content of scores.parquet as of now."""
        return self._frames()[1]

    def table(self) -> pd.DataFrame:
        """The contribution table as of now."""
        return self.summarise(pd.DataFrame(self.runs.values()), *self._frames())

    def write(self) -> None:
        """All three files, each replaced atomically."""
        steps, scores = self._frames()
        tables = {"steps": steps, "scores": scores, "contribution": self.table()}
        for name, frame in tables.items():
            write_atomically(f"{self.folder}/{name}.parquet", partial(frame.to_parquet, index=False))
        self.written = time.monotonic()

    def _write_if_due(self) -> None:
        if time.monotonic() - self.written > self.interval:
            self.write()

    def _frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        steps = pd.DataFrame(self.steps, columns=list(STEP_COLUMNS))
        empty = pd.DataFrame(columns=list(SCORE_COLUMNS))
        return steps, pd.concat(self.scores, ignore_index=True) if self.scores else empty
