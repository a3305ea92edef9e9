"""Choice of the learning rates by the scores of trials: the one-standard-error rule (Breiman et al. 1984)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from layersweep.orchestrator.planning.plan import Run
from layersweep.orchestrator.statistics.intervals import MeanAndCovariance
from layersweep.orchestrator.statistics.score_arrays import gains_at
from layersweep.workers.config import LearningRates, LearningRateTuning


def learning_rates_of(tuning: LearningRateTuning, trials: Sequence[Run], scores: pd.DataFrame) -> LearningRates:
    """Choose the rates to use.

    Args:
        trials: those that trained to their end.
        scores: the content of scores.parquet; base and trials are in it.

    Raises:
        ValueError: no trial of a kind is left: every candidate was too high.
    """
    found = {}
    for trains_all, kind in ((True, "full"), (False, "layer")):
        own = [run for run in trials if run.selection.trains_all == trains_all]
        if own:
            gains = gains_at(scores, [run.selection.name for run in own], tuning.steps)
            found[kind] = choose([run.learning_rate for run in own], gains)
        elif trains_all or tuning.reuse == "per_kind":
            raise ValueError(f"every trial of a learning rate for {kind} runs failed: name lower ones")
    return LearningRates(full=found["full"], layer=found.get("layer", found["full"]))


def choose(rates: Sequence[float], scores: MeanAndCovariance) -> float:
    """Choose the smallest rate whose score is within one standard error of the best's.

    Scores are paired: the error is that of the difference, on the same prompts. Where it is not known (a single
    prompt), the best score decides.
    """
    best = int(scores.mean.argmax())
    variance = np.diag(scores.covariance)
    error = np.sqrt(np.maximum(variance + variance[best] - 2 * scores.covariance[best], 0.0))
    near = scores.mean[best] - scores.mean <= np.nan_to_num(error)
    return min(rate for rate, close in zip(rates, near, strict=True) if close)
