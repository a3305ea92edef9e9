"""Scores of the sweep's own runs beside those of its variants."""

import pandas as pd

from layersweep.orchestrator.execution.variant_scoring import _copy_scores
from layersweep.workers.storage.run_store import RunStore


def test_runs_scores_are_copied_once(tmp_path):
    """What is there already is left as it is, new ones come along, and the sweep's folder is not touched."""
    sweep, target = str(tmp_path / "s"), str(tmp_path / "s" / "variants")
    store = RunStore(sweep, "full-seed0")
    store.write_metadata({"selection": "full", "seed": 0})
    store.write_scores(9, "selection", "sort", pd.DataFrame({"score": [1.0, 0.0]}))
    _copy_scores(sweep, target)
    copy = RunStore(target, "full-seed0")
    assert copy.metadata() == {"selection": "full", "seed": 0}
    copy.write_scores(9, "selection", "sort", pd.DataFrame({"score": [0.5, 0.5]}))
    store.write_scores(9, "final", "sort", pd.DataFrame({"score": [1.0]}))
    _copy_scores(sweep, target)
    found = {key: frame["score"].tolist() for key, frame in copy.scores()}
    assert found == {(9, "selection", "sort"): [0.5, 0.5], (9, "final", "sort"): [1.0]}
    assert {key for key, _ in store.scores()} == set(found)
