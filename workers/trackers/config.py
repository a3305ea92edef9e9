"""The `tracking` section of the spec."""

from typing import Literal

from layersweep.policies.strict import StrictModel


class WandbConfig(StrictModel):
    """Weights & Biases: one of its runs per run, grouped by sweep. Needs `pip install wandb`, and WANDB_API_KEY in
    the environment of the cluster unless offline."""

    project: str = "layersweep"
    entity: str | None = None
    """A team or user; null is the account's own."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes below `wandb/` in the sweep's folder (a local one), for `wandb sync` later."""


class MLflowConfig(StrictModel):
    """MLflow: one experiment per sweep, one of its runs per run. Needs `pip install mlflow-skinny`."""

    uri: str | None = None
    """URI of the tracking server, or `sqlite:///path`; null is the cluster's MLFLOW_TRACKING_URI."""
    experiment: str | None = None
    """Name of the experiment; null is the sweep's name."""


class TrackingConfig(StrictModel):
    """Trackers besides the parquet files. Ray's metrics (for Prometheus) and TensorBoard's event files
    (`tensorboard/` in the sweep's folder) are always written."""

    wandb: WandbConfig | None = None
    mlflow: MLflowConfig | None = None
