"""Gains of sweeps suite by suite, beside the agreement of their rankings."""

from collections.abc import Sequence

import pandas as pd

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.storage.files import resolve_uri
from layersweep.workers.storage.tables import BY_SUITE

from .format import format_interval, format_number
from .suites import NAMES

HEADS = ("table", "suite", "base", "full's gain", "95 %", "best layer", "its C", "95 %", "lost most", "95 %")


def suite_rows(tables: Sequence[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Return rows of text under HEADS, one for each suite and group of suites of each sweep that has several.

    The best layer is that of the suite, and overstates itself; `lost most` is the selection with the lowest gain.

    Args:
        tables: name of each table, and its path or URI; without a contribution_by_suite.parquet beside it, it has no
            rows.

    Raises:
        SpecError: one that is there cannot be read.
    """
    rows = []
    for name, file in tables:
        folder, _, of_sweep = file.rpartition("contribution.parquet")
        beside = f"{folder}{BY_SUITE.name}.parquet"
        filesystem, path = resolve_uri(beside)
        if of_sweep or not filesystem.exists(path):
            continue
        try:
            found = BY_SUITE.read(beside)
        except (OSError, ValueError) as error:
            raise SpecError([f"{beside}: {error}"]) from error
        found = found[found["split"] == "selection"]
        if found["counts"].notna().sum() and found.loc[found["counts"].notna(), "suite"].nunique() > 1:
            rows += [_row(name, suite, part) for suite, part in found.groupby("suite", sort=False)]
    return rows


def _row(name: str, suite: str, found: pd.DataFrame) -> tuple[str, ...]:
    base, full = (found[found["kind"] == kind].to_dict("records") for kind in ("base", "full"))
    layers = found[(found["kind"] == "layer") & found["contribution"].notna()]
    trained = found[found["gain"].notna()]
    best = layers.loc[layers["contribution"].idxmax()] if len(layers) else None
    least = trained.loc[trained["gain"].idxmin()] if len(trained) else None
    return (
        name,
        NAMES.get(suite, suite) + (" (not in S)" if (found["counts"] == False).any() else ""),  # noqa: E712  may be null
        format_number(base[0]["score"], 3) if base else "–",
        format_number(full[0]["gain"], 3) if full else "–",
        format_interval(full[0]["gain_low"], full[0]["gain_high"], 3) if full else "–",
        "–" if best is None else best["selection"],
        "–" if best is None else format_number(best["contribution"]),
        "–" if best is None else format_interval(best["contribution_low"], best["contribution_high"]),
        "–" if least is None else f"{least['selection']} {format_number(least['gain'], 3)}",
        "–" if least is None else format_interval(least["gain_low"], least["gain_high"], 3),
    )
