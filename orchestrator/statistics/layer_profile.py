"""A layer profile (the contribution of every layer scanned) read from a table of ours or of anybody's."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .intervals import Z95

DERIVED = re.compile(r"avg|average|mean|total|^c_|contribution|^delta|rank|depth|seed|step|std|stderr|_low$|_high$")
"""Numeric columns that are not a suite's score, when a table names its suites instead of having a `score`."""


@dataclass(frozen=True)
class Profile:
    """What each layer contributes, in order of depth."""

    name: str
    layers: np.ndarray
    """[layers] index in the model"""
    depth: np.ndarray
    """[layers] 0 for a model's first layer, 1 for its last"""
    contribution: np.ndarray
    """[layers]; scores where a table has no base and full to measure them by"""
    noise: np.ndarray
    """[layers] standard deviation of the noise in it, that which can change ranks; NaN where unknown"""
    model_layers: int
    is_contribution: bool
    pruned: int = 0
    """Layers left out because a search stopped them early: their contributions are extrapolations."""


def load_profile(path: str | Path, *, noise: float | None = None) -> Profile:
    """The profile in a .parquet or .csv file, named after the file, or after its folder for a contribution.parquet."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path.name} is neither a .parquet nor a .csv")
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    return profile(table, path.parent.name if path.stem == "contribution" else path.stem, noise=noise)


def profile(table: pd.DataFrame, name: str, *, noise: float | None = None) -> Profile:
    """The profile in a table with a `layer` column and a row per layer.

    Contributions are its `contribution` column. Without one they are computed from `score`, or without that from the
    mean of the numeric columns that are suites (see DERIVED), by the rows named base and full in a `selection`,
    `setting` or `kind` column; without those rows the scores themselves are the profile. The noise is the column
    `contribution_sd`, else half the width of `contribution_low..high`, else `noise`, a standard deviation of C that
    the user gives, else unknown. Rows without a layer or without a value are left out, and so are those with the
    `status` pruned.
    """
    table = table.rename(columns=lambda column: str(column).strip().lower())
    if "layer" not in table:
        raise ValueError(f"{name} has no column `layer`; it has {', '.join(table.columns)}")
    layer = pd.to_numeric(table["layer"], errors="coerce").to_numpy(float, na_value=np.nan)
    value, is_contribution = _contribution(table, name)
    sd = _noise(table, noise)
    if "kind" in table:
        layer = np.where(table["kind"].isin(["base", "full", "layers"]), np.nan, layer)
    known = np.isfinite(layer) & np.isfinite(value)
    pruned = known & (table["status"] == "pruned").to_numpy() if "status" in table else np.zeros_like(known)
    kept = np.flatnonzero(known & ~pruned)
    kept = kept[np.argsort(layer[kept], kind="stable")]
    layers = layer[kept].astype(int)
    if not len(layers):
        raise ValueError(f"{name} has no layer with a contribution")
    if (twice := layers[1:][np.diff(layers) == 0]).size:
        raise ValueError(f"{name} has more than one row for layer {twice[0]}")
    model_layers = _model_layers(table, layer)
    depth = layers / max(model_layers - 1, 1)
    return Profile(name, layers, depth, value[kept], sd[kept], model_layers, is_contribution, int(pruned.sum()))


def _contribution(table: pd.DataFrame, name: str) -> tuple[np.ndarray, bool]:
    """[rows] the contribution, or the score where it cannot be had, and which of the two it is."""
    if "contribution" in table:
        return _numbers(table["contribution"]), True
    if "score" in table:
        score = _numbers(table["score"])
    else:
        suites = [
            column
            for column in table.select_dtypes("number")
            if column not in ("layer", "kind") and not DERIVED.search(column)
        ]
        if not suites:
            raise ValueError(f"{name} has neither `contribution` nor `score` nor a numeric column per suite")
        score = table[suites].astype(float).mean(axis=1, skipna=False).to_numpy()
    for column in ("selection", "setting", "kind"):
        if column not in table:
            continue
        label = table[column].astype("string").str.strip().str.lower()
        base, full = score[label == "base"], score[label == "full"]
        if len(base) == len(full) == 1:
            if base[0] == full[0]:
                raise ValueError(f"{name}: full scores as much as base, so contributions are undefined")
            return (score - base[0]) / (full[0] - base[0]), True
    return score, False


def _noise(table: pd.DataFrame, given: float | None) -> np.ndarray:
    """[rows] standard deviation of the contribution's noise."""
    if "contribution_sd" in table:
        return _numbers(table["contribution_sd"])
    if {"contribution_low", "contribution_high"} <= set(table):
        return (_numbers(table["contribution_high"]) - _numbers(table["contribution_low"])) / (2 * Z95)
    return np.full(len(table), np.nan if given is None else float(given))


def _model_layers(table: pd.DataFrame, layer: np.ndarray) -> int:
    """Layers of the model: from `depth` = layer / (L - 1) where the table has it, else one more than the last named."""
    if "depth" in table:
        depth = _numbers(table["depth"])
        known = np.isfinite(layer) & np.isfinite(depth) & (depth > 0)
        if known.any():
            return int(round(float(np.median(layer[known] / depth[known])))) + 1
    return int(np.nanmax(layer)) + 1


def _numbers(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="raise").to_numpy(float, na_value=np.nan)
