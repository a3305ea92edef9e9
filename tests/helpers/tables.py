"""Tables for tests: what a selection is, from its name, and files as version 1 wrote them."""

import re
from pathlib import Path

import pandas as pd


def selections_of(*names: str) -> pd.DataFrame:
    """Rows of selections as a runs table has them: `layer-07` is the single layer 7, `...@lr-...` a trial."""
    rows = []
    for name in dict.fromkeys(names):
        layer = re.fullmatch(r"layer-(\d+)", name)
        kind = "trial" if "@" in name else name if name in ("base", "full") else "layer" if layer else "layers"
        rows.append({"selection": name, "kind": kind, "layer": int(layer[1]) if layer else None})
    return pd.DataFrame(rows, columns=["selection", "kind", "layer"])


def selections_in(scores: pd.DataFrame) -> pd.DataFrame:
    """Those of a scores table."""
    return selections_of(*scores["selection"])


def run_facts(selection: str) -> dict:
    """Metadata that a driver gives the collector of a run with seed 0 in a model of 6 layers."""
    row = selections_of(selection).iloc[0]
    layer = row["layer"] if row["kind"] == "layer" else None
    return {
        "selection": selection, "seed": 0, "kind": row["kind"], "layer": layer,
        "depth": None if layer is None else layer / 5, "layers": [] if layer is None else [layer],
        "learning_rate": 1e-3, "trainable_parameters": 10, "seconds": 1.0,
    }  # fmt: skip


SINCE = ["model_layers", "losses", "gradient_agreement", "unjudged", "unjudged_fraction", "overlong_prompts"]
"""Columns that came after the tables of version 1 that tests make."""


def save_as_version_1(folder: Path) -> None:
    """Rewrite a sweep's tables, and its run stores' scores, without version and without the columns that came since."""
    for path in [*folder.glob("*.parquet"), *folder.glob("checkpoints/*/scores/*.parquet")]:
        pd.read_parquet(path).drop(columns=SINCE, errors="ignore").to_parquet(path, index=False)
