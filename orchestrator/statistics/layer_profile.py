"""A layer profile (the contribution of every layer scanned) read from a table of layersweep's or any other."""

import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from layersweep.workers.storage.files import read_bytes, read_table
from layersweep.workers.storage.tables import model_layers_from_depth

from .intervals import Z95

MOST_LAYERS = 10_000
"""Layers of a model at most: a larger number is a slip."""
ORIGIN = ("algorithm", "task", "model")
"""Columns of a contribution table by which sweeps differ."""
DERIVED = re.compile(r"avg|average|mean|total|^c_|contribution|^delta|rank|depth|seed|step|std|stderr|_low$|_high$")
"""Numeric columns that are not a suite's score, when a table names its suites instead of having a `score`."""


@dataclass(frozen=True)
class Profile:
    """Contributions of a model's layers, in order of depth."""

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
    """Layers of the model, scanned or not."""
    is_contribution: bool
    """Whether `contribution` holds contributions rather than scores."""
    pruned: int = 0
    """Layers left out because a search stopped them early: their contributions are extrapolations."""
    optimizer_steps: tuple[int, int] | None = None
    """Fewest and most optimizer steps of its runs, None where unknown; batches without signal take none."""
    origin: dict[str, str] = field(default_factory=dict)
    """Algorithm, task and model of its sweep, as far as the table has them."""
    seeds: int = 1
    """Fewest training runs of a layer."""


def load_profile(location: str | Path, *, noise: float | None = None) -> Profile:
    """Return the profile in a .parquet or .csv file at a path or URI, named after the file, or after its folder for a
    contribution.parquet.

    Raises:
        OSError: the file is not there, or cannot be read.
        ValueError: it is no such file, or holds no profile.
    """
    location, path = str(location), PurePosixPath(location)
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path.name} is neither a .parquet nor a .csv")
    table = read_table(location) if path.suffix == ".parquet" else _read_csv(location)
    return profile(table, path.parent.name if path.stem == "contribution" else path.stem, noise=noise)


def _read_csv(location: str) -> pd.DataFrame:
    if (content := read_bytes(location)) is None:
        raise FileNotFoundError(f"{location}: no such file")
    return pd.read_csv(BytesIO(content))


def profile(table: pd.DataFrame, name: str, *, noise: float | None = None) -> Profile:
    """Return the profile in a table with a `layer` column and a row per layer.

    Contributions are its `contribution` column. Without one they are computed from `score`, or without that from the
    mean of the numeric columns that are suites (see DERIVED), by the rows named base and full in a `selection`,
    `setting` or `kind` column; without those rows the scores themselves are the profile. The noise is the column
    `contribution_sd`, else half the width of `contribution_low..high`, else `noise`, a standard deviation of C that
    the user gives, else unknown. Rows without a layer or without a value are left out, and so are those with the
    `status` pruned; but no row may name a layer that there cannot be.

    Raises:
        ValueError: there is no profile in the table, or not one alone.
    """
    table = table.rename(columns=lambda column: str(column).strip().lower())
    if (twice := table.columns[table.columns.duplicated()]).size:
        raise ValueError(f"{name} has more than one column `{twice[0]}`")
    if "layer" not in table:
        raise ValueError(f"{name} has no column `layer`; it has {', '.join(table.columns)}")
    layer = _layers(table, name)
    value, is_contribution = _contribution(table, name)
    sd = _noise(table, noise)
    known = np.isfinite(layer) & np.isfinite(value)
    pruned = known & (table["status"] == "pruned").to_numpy() if "status" in table else np.zeros_like(known)
    kept = np.flatnonzero(known & ~pruned)
    kept = kept[np.argsort(layer[kept], kind="stable")]
    if not len(kept):
        raise ValueError(f"{name} has no layer with a contribution")
    layers = layer[kept].astype(int)
    if (twice := layers[1:][np.diff(layers) == 0]).size:
        raise ValueError(f"{name} has more than one row for layer {twice[0]}")
    model_layers = _model_layers(table, layer, name)
    depth = layers / max(model_layers - 1, 1)
    taken = _numbers(table["optimizer_steps"])[kept] if "optimizer_steps" in table else np.empty(0)
    taken = taken[np.isfinite(taken)]
    return Profile(
        name, layers, depth, value[kept], sd[kept], model_layers, is_contribution, int(pruned.sum()),
        (int(taken.min()), int(taken.max())) if len(taken) else None, _origin(table), _seeds(table, kept),
    )  # fmt: skip


def _origin(table: pd.DataFrame) -> dict[str, str]:
    """Return columns that say what a sweep was of, where all rows agree."""
    known = {name: table[name].dropna().astype(str).unique() for name in ORIGIN if name in table}
    return {name: str(values[0]) for name, values in known.items() if len(values) == 1}


def _seeds(table: pd.DataFrame, kept: np.ndarray) -> int:
    seeds = _numbers(table["seeds"])[kept] if "seeds" in table else np.empty(0)
    return int(seeds[np.isfinite(seeds)].min(initial=np.inf)) if np.isfinite(seeds).any() else 1


def _layers(table: pd.DataFrame, name: str) -> np.ndarray:
    """[rows] the layer of each row, NaN of base, full and all that is not one layer.

    Raises:
        ValueError: a row names a layer that there cannot be, whether it has a contribution or not.
    """
    named = table["layer"].astype(object)
    if "kind" in table:
        named = named.where(~table["kind"].isin(["base", "full", "layers", "part", "control", "trial"]), None)
    layer = np.full(len(named), np.nan)
    for row, (value, known) in enumerate(zip(named, named.notna(), strict=True)):
        if not known or str(value).strip().lower() in ("", "base", "full"):
            continue
        try:
            layer[row] = float(value)
        except (ValueError, TypeError):
            layer[row] = -1
        if not 0 <= layer[row] < MOST_LAYERS or layer[row] % 1:
            raise ValueError(f"{name} has a layer {value!r:.40}; layers are whole numbers from 0")
    return layer


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
            if column not in ("layer", "kind", "model_layers") and not DERIVED.search(column)
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


def _model_layers(table: pd.DataFrame, layer: np.ndarray, name: str) -> int:
    """Return the number of layers of the model: as stored, else from `depth` = layer / (L - 1), else one more than the
    last named.

    Raises:
        ValueError: there are fewer by what is stored than by the layers that are named, or more than any model has.
    """
    least = int(np.nanmax(layer)) + 1
    if "model_layers" in table and (stored := table["model_layers"].dropna()).size:
        count = float(_numbers(stored).max())
        if not least <= count <= MOST_LAYERS or count % 1:
            raise ValueError(f"{name} says that the model has {count:g} layers, and names layer {least - 1}")
        return int(count)
    depth = pd.Series(_numbers(table["depth"])) if "depth" in table else pd.Series(dtype=float)
    return max(model_layers_from_depth(pd.Series(layer).reindex(depth.index), depth) or 0, least)


def _numbers(column: pd.Series) -> np.ndarray:
    """[rows] a column as floats, NaN where null.

    Raises:
        ValueError: it holds something else than numbers.
    """
    try:
        return pd.to_numeric(column, errors="raise").to_numpy(float, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"column `{column.name}`: {error}") from error
