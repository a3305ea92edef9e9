"""The learning rate's course over a run."""

import math

from layersweep.workers.config import TrainingConfig


def learning_rate(config: TrainingConfig, peak: float, step: int, optimizer_step: int = 0) -> float:
    """Return a learning rate: linear warm-up, then the schedule, which would be at 0 after the last step.

    With n steps of warm-up and N in all step i has (i + 1) / n of the peak at i < n, and then 1 - (i - n) / (N - n)
    (linear) or half of 1 + cos(pi (i - n) / (N - n)); transformers' get_linear_schedule_with_warmup and
    get_cosine_schedule_with_warmup, but for the warm-up, which is theirs one step ahead.

    Args:
        peak: learning rate after the warm-up.
        step: of the run, from 0.
        optimizer_step: number of the optimizer step within the batch, from 0; a minibatch that takes none counts too.
    """
    unit = 1
    if config.schedule_unit == "optimizer_step":
        unit = config.epochs * config.minibatches
        step = step * unit + optimizer_step
    warmup = config.warmup_steps * unit
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps * unit - warmup)
    if config.schedule == "linear":
        return peak * (1 - done)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak
