"""Tables for tests: what a selection is, from its name, and files as version 1 wrote them."""

import re

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
