"""Trackers, to which a sweep's numbers go besides its parquet files: Prometheus, TensorBoard, Weights & Biases, MLflow.

The collector hands every tracker each row of steps.parquet as it arrives, and the contribution table each time it is
written. A row may come again, with the same or other values: a run that goes on from a checkpoint repeats the steps
after it, and a collector that was restarted sends what it finds once more. Then the newer values count.
"""

import logging
from typing import TYPE_CHECKING, Any, Protocol

from .config import TrackingConfig

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Place for a sweep's numbers."""

    def step(self, run: dict[str, Any], row: dict[str, Any]) -> None:
        """Take one row of steps.parquet.

        Args:
            run: what is known of its run: selection, seed, kind, layer, ...
            row: selection, seed, step, and the metrics (None or NaN where there is none).
        """

    def table(self, frame: "pd.DataFrame") -> None:
        """Send the contribution table as of now."""

    def close(self) -> None:
        """Nothing comes any more."""


class FailSafeTracker:
    """A tracker whose failures (a server that does not answer) end the tracking, not the sweep."""

    def __init__(self, tracker: Tracker):
        self.tracker: Tracker | None = tracker

    def step(self, run: dict[str, Any], row: dict[str, Any]) -> None:
        self._call("step", run, row)

    def table(self, frame: "pd.DataFrame") -> None:
        self._call("table", frame)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *args: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, method)(*args)
        except Exception:  # theirs: whatever a client of a remote service may raise
            log.exception("%s failed and gets nothing more; the sweep goes on", type(self.tracker).__name__)
            self.tracker = None


def build(tracking: TrackingConfig, sweep: str, folder: str) -> list[Tracker]:
    """Return the trackers of a sweep, to be called inside an actor.

    Args:
        tracking: the spec's section.
        sweep: its name.
        folder: the sweep's; a path or an fsspec URI.

    Raises:
        ImportError: a tracker was asked for whose package is not installed.
    """
    from .prometheus import Prometheus
    from .tensorboard import TensorBoard

    trackers: list[Tracker] = [Prometheus(sweep), FailSafeTracker(TensorBoard(f"{folder}/tensorboard"))]
    if tracking.wandb:
        from .wandb import WeightsAndBiases

        trackers.append(FailSafeTracker(WeightsAndBiases(tracking.wandb, sweep, folder)))
    if tracking.mlflow:
        from .mlflow import MLflow

        trackers.append(FailSafeTracker(MLflow(tracking.mlflow, sweep)))
    return trackers
