"""MLflow."""

import time
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric

from layersweep.policies.selection import run_name
from layersweep.workers.trackers.step_rows import metrics

from .config import MLflowConfig

if TYPE_CHECKING:
    import pandas as pd


class MLflow:
    """One MLflow run per run in the sweep's experiment, and one named like the sweep with all scores and contributions.

    MLflow keeps both values of a step that is logged twice, so what an earlier process logged is left as it is.
    """

    def __init__(self, config: MLflowConfig, sweep: str):
        self.client, self.sweep = MlflowClient(config.uri), sweep
        name = config.experiment or sweep
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)
        self.runs: dict[str, str] = {}
        self.last: dict[str, int] = {}
        self.logged: dict[str, float] = {}

    def step(self, run: dict[str, Any], row: dict[str, Any]) -> None:
        name, step, now = run_name(run["selection"], run["seed"]), int(row["step"]), int(time.time() * 1000)
        known = self._run(name)
        if step > self.last[name]:
            self.last[name] = step
            self.client.log_batch(known, [Metric(key, value, now, step) for key, value in metrics(row).items()])

    def table(self, frame: "pd.DataFrame") -> None:
        run, now = self._run(self.sweep), int(time.time() * 1000)
        values = {
            f"{column}/{row['selection']}": row[column]
            for row in frame.to_dict("records")
            for column in ("score", "contribution")
            if row[column] == row[column]
        }
        changed = {key: value for key, value in values.items() if value != self.logged.get(key)}
        self.client.log_batch(run, [Metric(key, value, now, 0) for key, value in changed.items()])
        self.logged = values

    def close(self) -> None:
        for run in self.runs.values():
            self.client.set_terminated(run)

    def _run(self, name: str) -> str:
        """Return the id of this run, made or found again, and the last step that was logged to it."""
        if name not in self.runs:
            named = f"tags.`mlflow.runName` = '{self.sweep}/{name}'"
            found = self.client.search_runs([self.experiment], named, max_results=1)
            run = found[0] if found else self.client.create_run(self.experiment, run_name=f"{self.sweep}/{name}")
            self.runs[name] = run.info.run_id
            history = self.client.get_metric_history(run.info.run_id, "reward_mean") if found else []
            self.last[name] = max((metric.step for metric in history), default=-1)
        return self.runs[name]
