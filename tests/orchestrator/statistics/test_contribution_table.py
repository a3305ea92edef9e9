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


def test_a_spec_s_seed_sd_reaches_both_splits():
    """Four prompts, one sample, one seed; base 0, full 1 and layer .5 everywhere, so that prompts leave no noise:
    var_layer = var_full = .01 with seed_sd .1, and the interval's ends are the roots of (.5 - C)^2 = t^2 .01 (1 + C^2)
    """
    run = {"seed": 0, "depth": None, "layers": None, "trainable_parameters": None, "learning_rate": 1e-3,
           "seconds": 1.0, "status": "completed", "reason": None}  # fmt: skip
    kinds = {"base": ("base", 0.0), "full": ("full", 1.0), "layer-00": ("layer", 0.5)}
    layer_of = {"layer-00": 0}
    runs = pd.DataFrame(
        [run | {"selection": name, "kind": kind, "layer": layer_of.get(name)} for name, (kind, _) in kinds.items()]
    )
    scores = pd.DataFrame([
        {"selection": name, "seed": 0, "step": 0, "suite": "a", "split": split, "prompt": prompt, "sample": 0,
         "score": score, "response_tokens": 3, "truncated": False, "format_ok": True, "category": None}
        for name, (_, score) in kinds.items() for split in ("selection", "final") for prompt in "abcd"
    ])  # fmt: skip
    steps = STEPS.frame([])
    given = sweep_table(SWEEP, runs, steps, scores, seed_sd=0.1).set_index("selection").loc["layer-00"]
    t2 = 1.959964**2 * 0.01
    ends = sorted(np.roots([1 - t2, -1, 0.25 - t2]))
    for prefix in ("", "final_"):
        seen = [given[f"{prefix}contribution_low"], given[f"{prefix}contribution_high"]]
        np.testing.assert_allclose(seen, ends, rtol=1e-6)
    without = sweep_table(SWEEP, runs, steps, scores).set_index("selection").loc["layer-00"]
    assert without["contribution_high"] - without["contribution_low"] < 1e-9
