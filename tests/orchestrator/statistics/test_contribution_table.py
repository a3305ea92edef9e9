"""The table of a sweep of which little or nothing is known yet."""

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.workers.storage.tables import SCORES, STEPS

SWEEP = {"sweep": "s", "model": "m", "algorithm": "grpo", "task": "t"}


def test_runs_that_all_failed_before_their_first_step():
    """The base is scored (mean of 1, 0, 1, 0), nothing else is; what is missing is missing as a number."""
    facts = {
        "seed": 0,
        "depth": None,
        "layers": None,
        "trainable_parameters": None,
        "learning_rate": 1e-3,
        "seconds": 1.0,
    }
    runs = pd.DataFrame(
        [
            facts | {"selection": "base", "kind": "base", "layer": None, "status": "completed", "reason": None},
            facts | {"selection": "full", "kind": "full", "layer": None, "status": "failed", "reason": "broken"},
            facts | {"selection": "layer-00", "kind": "layer", "layer": 0, "status": "failed", "reason": "broken"},
        ]
    )
    scores = pd.DataFrame(
        {
            "selection": "base", "seed": 0, "step": 0, "suite": "a", "split": "selection", "prompt": list("abcd"),
            "sample": 0, "score": [1.0, 0.0, 1.0, 0.0], "response_tokens": 3, "truncated": False, "format_ok": True,
        },
    )  # fmt: skip
    table = sweep_table(SWEEP, runs, STEPS.frame([]), SCORES.frame(scores)).set_index("selection")
    assert table.index.tolist() == ["base", "full", "layer-00"]
    assert table.loc["base", "score"] == 0.5
    assert table["status"].tolist() == ["completed", "failed", "failed"]
    for name in ("score", "contribution", "update_norm", "response_tokens"):
        assert table[name].dtype == np.float64 and np.isnan(table.loc["layer-00", name]), name
