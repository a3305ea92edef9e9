"""The heat map of C by layer and by what of the layer was trained."""

import pandas as pd

from layersweep.policies.selection import MODULES, LowRank

from .chart import Chart
from .matrix_chart import matrix_chart
from .results import Results

WHOLE = "layer"


def module_chart(results: Results) -> Chart | None:
    """C of runs over one layer or a part of it: a row for each part, a column for each layer; None where all runs are
    over the same part, or of one layer."""
    table = results.table
    rows = table[table["kind"].isin(["layer", "part"]) & table["layer"].notna() & table["contribution"].notna()]
    parts = [_part(row) for row in rows[["modules", "lora_rank", "lora_alpha"]].to_dict("records")]
    if len(set(parts)) < 2 or rows["layer"].nunique() < 2:
        return None
    order = dict.fromkeys([part for part in (WHOLE, *MODULES) if part in parts] + parts)
    values = rows.assign(part=parts, contribution=rows["contribution"].astype(float))
    found = values.pivot_table("contribution", "part", "layer", aggfunc="first").reindex(list(order))
    found.columns = [f"{layer:02d}" for layer in found.columns]
    return matrix_chart(found, "C by layer and part", signed=True)


def _part(row: dict) -> str:
    """Name what of its layer a run trained."""
    part = WHOLE if pd.isna(row["modules"]) else row["modules"]
    return part if pd.isna(row["lora_rank"]) else f"{part} {LowRank(row['lora_rank'], row['lora_alpha']).label}"
