"""Weights & Biases."""

import os
from typing import TYPE_CHECKING, Any

import wandb

from layersweep.policies.selection import run_name
from layersweep.workers.storage.files import resolve_uri
from layersweep.workers.trackers.step_rows import metrics

from .config import WandbConfig

if TYPE_CHECKING:
    import pandas as pd


class WeightsAndBiases:
    """One W&B run per run, grouped by sweep, and one named like the sweep for the contribution table.

    W&B itself drops a step that is not above a run's last one.
    """

    def __init__(self, config: WandbConfig, sweep: str, folder: str):
        self.config, self.sweep = config, sweep
        filesystem, path = resolve_uri(folder)
        self.folder = path if "file" in filesystem.protocol else None
        self.runs: dict[str, Any] = {}
        self.frame: pd.DataFrame | None = None

    def step(self, run: dict[str, Any], row: dict[str, Any]) -> None:
        self._run(run_name(run["selection"], run["seed"])).log(metrics(row), step=int(row["step"]))

    def table(self, frame: "pd.DataFrame") -> None:
        self.frame = frame
        summary = self._run(self.sweep).summary
        for row in frame.to_dict("records"):
            for column in ("score", "contribution"):
                if row[column] == row[column]:
                    summary[f"{column}/{row['selection']}"] = row[column]

    def close(self) -> None:
        if self.frame is not None:  # at the end alone: W&B keeps every version of a table
            flat = self.frame.drop(columns="layers").astype(object).where(self.frame.notna(), None)
            table = wandb.Table(dataframe=flat, allow_mixed_types=True)
            self._run(self.sweep).log({"contribution": table})
        for run in self.runs.values():
            run.finish()

    def _run(self, name: str) -> Any:
        if name not in self.runs:
            if self.folder:
                os.makedirs(self.folder, exist_ok=True)
            self.runs[name] = wandb.init(
                project=self.config.project, entity=self.config.entity, mode=self.config.mode, group=self.sweep,
                name=name, id=f"{self.sweep}-{name}", resume="allow", reinit="create_new", dir=self.folder,
            )  # fmt: skip
        return self.runs[name]
