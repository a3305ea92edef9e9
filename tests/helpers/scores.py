"""Tables of scores for tests, and the contribution table of them."""

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics.contribution import contribution_table
from tests.helpers.tables import selections_in


def responses(selection, values, *, seed=0, step=10, suite="maths", split="final", first=0, **more):
    """One response per prompt, prompts numbered from `first`."""
    values = np.asarray(values, dtype=float)
    columns = {
        "selection": selection,
        "seed": seed,
        "step": step,
        "suite": suite,
        "split": split,
        "prompt": [f"p{i}" for i in range(first, first + len(values))],
        "sample": 0,
        "score": values,
        "response_tokens": 100,
        "truncated": False,
        "format_ok": True,
    }
    return pd.DataFrame(columns | more)


def frame(*parts):
    return pd.concat(parts, ignore_index=True)


def table_of(scores, **options):
    """The contribution table of selections that are what their names say."""
    return contribution_table(scores, selections_in(scores), **options)


BASE, FULL, LAYER = np.tile([0, 0, 0, 1], 10), np.tile([1, 1, 0, 1], 10), np.tile([1, 0, 0, 1], 10)
"""40 prompts: gains per block of four are 1,1,0,0 of full and 1,0,0,0 of the layer, so C = 0.25 / 0.5."""


def sweep(**by_name):
    """A table from base, full and layers, one seed and step."""
    return frame(*(responses(name.replace("_", "-"), values) for name, values in by_name.items()))


def row(table, selection):
    return table.set_index("selection").loc[selection]
