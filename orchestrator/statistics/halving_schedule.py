"""Successive halving over depth: a schedule of which layers train on and which stop, for a driver to follow.

Every layer trains to a first rung; their scores are smoothed along depth and the most promising go on to the next
rung, from where they paused. The finalists are scored with more samples, because choosing among them is where most
would otherwise be lost. At 28 layers and the default budget: all to 10 % of the steps, 14 to 20 %, 7 to 40 %, 3 to
the end. Of a dozen such ladders of the same cost this one found the best layers in tests/simulations/search_regret.py:
the layers of steeper ones (10 to 25 %, 5 to 50 %, 3 to the end) were worse by 0.009 of C on average, by 0.03 in the
most ragged profile. Mixing in the scores of earlier rungs did not help, nor did six finer rungs.

All scores are on the same prompts, so what these happen to favour in a layer stays with it to the end. In 200
simulations of six shapes the layer found was within 0.015 of C of an exhaustive scan's, and within 0.015 of a scan that
scores its best three again on all but the ragged shape, where neighbours tell nothing of each other: there it was 0.044
behind (0.063 below the best layer, against 0.019). With the usual samples at the rungs it was 0.082 below, on the other
shapes the same within 0.004; four times the samples gained no more. Smoothing is not what fails there: the raw scores
did no better (120 simulations), nor did keeping four layers to the end. At 10 to 20 % of the steps layers show a fifth
to a half of their gain, under all that the prompts favour. A second measurement on other prompts would help, in
simulation as much as twice the samples: the reward in training is one, where training and suites are of one kind.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layersweep.orchestrator.statistics import depth_gp

FIRST = 1 / 3
"""The first rung's share of the steps, in units of the budget."""
EXPONENTS = (1.0, 0.7, 0.4)
"""Rungs are at these powers of the first one's share, 0.1, 0.2 and 0.4, and at the end."""
KEEP = (14 / 28, 7 / 28, 3 / 28)
"""Shares of the layers kept after each rung but the last, at a budget of 0.3 and in proportion at others."""
SPARE = ((4, 2, 1), (2, 1, 0), (0, 0, 0))
"""Layers kept beyond those wanted after each rung but the last, at least: the first line that the budget allows."""
REFERENCE_BUDGET = 0.3
RUNG_SAMPLES, FINAL_SAMPLES = 2, 4
"""Times as many samples a prompt for the layers at a rung, and for the finalists."""
EARLIEST = 0.02
"""No rung comes before this share of the steps: nothing has been learned yet."""


@dataclass(frozen=True)
class Rung:
    """Train `layers` layers on to `step`, score them, keep the best `keep`."""

    step: int
    layers: int
    keep: int
    samples: int
    """Times the usual number of samples a prompt."""


@dataclass(frozen=True)
class HalvingSchedule:
    """A search for the `goal` ("best", or "top 5") within a `budget`.

    The budget is a share of the training steps that all layers together would take. The base and the full run are
    outside it: a sweep needs both whatever it searches.
    """

    budget: float = REFERENCE_BUDGET
    goal: str = "best"

    def __post_init__(self):
        if not 0 < self.budget <= 1:
            raise ValueError(f"a search budget is a share of the exhaustive cost in (0, 1], not {self.budget}")
        if self.wanted < 1:
            raise ValueError("a search wants at least one layer")

    @property
    def wanted(self) -> int:
        """Number of layers that the search is to find."""
        if self.goal == "best":
            return 1
        if match := re.fullmatch(r"top (\d+)", self.goal):
            return int(match[1])
        raise ValueError(f'a search goal is "best" or "top K", not {self.goal!r}')

    def rungs(self, layers: int, steps: int) -> list[Rung]:
        """Return the schedule for a model, or a scan, of so many layers; the first rung as late as the budget allows.

        Where the layers to keep would overrun the budget, as in small models and for large goals, the first rung
        comes earlier and fewer spare layers are kept; a budget that cannot be met is refused.
        """
        if layers < 1 or steps < 1:
            raise ValueError(f"a search needs layers and steps, not {layers} and {steps}")
        if self.budget == 1 or self.wanted >= layers:
            if self.budget < 1:
                raise ValueError(f"finding {self.wanted} of {layers} layers takes the whole budget, not {self.budget}")
            return [Rung(steps, layers, min(self.wanted, layers), FINAL_SAMPLES)]
        latest = FIRST * self.budget
        for spare, earliest in zip(SPARE, (latest / 2, latest / 2, EARLIEST), strict=True):
            shares = [math.ceil(share * layers * self.budget / REFERENCE_BUDGET - 1e-9) for share in KEEP]
            keeps = [min(layers, max(n, self.wanted + more)) for n, more in zip(shares, spare, strict=True)]
            first = latest
            while first >= earliest:
                rungs = _ladder(first, keeps, layers, steps, self.wanted)
                if cost(rungs) <= self.budget * layers * steps:
                    return rungs
                first *= 0.98
        raise ValueError(
            f"a budget of {self.budget:g} is too small for the {self.goal} of {layers} layers in {steps} steps"
        )


def _ladder(first: float, keeps: Sequence[int], layers: int, steps: int, wanted: int) -> list[Rung]:
    """Return rungs at powers of `first`, without those that would drop no layer or train no further than the one
    before."""
    rungs: list[Rung] = []
    alive = layers
    for power, keep in zip(EXPONENTS, keeps, strict=True):
        end = max(1, round(first**power * steps))
        if keep < alive and end < steps and not (rungs and end == rungs[-1].step):
            rungs.append(Rung(end, alive, keep, RUNG_SAMPLES))
            alive = keep
    return [*rungs, Rung(steps, alive, wanted, FINAL_SAMPLES)]


def cost(rungs: Sequence[Rung]) -> int:
    """Training steps of a schedule, summed over layers."""
    before = [0, *(rung.step for rung in rungs[:-1])]
    return sum(rung.layers * (rung.step - start) for rung, start in zip(rungs, before, strict=True))


def survivors(layers: Sequence[int], scores: np.ndarray, noise: np.ndarray, keep: int) -> list[int]:
    """Return the `keep` most promising of `layers`, in order of depth, by their scores smoothed along depth.

    scores [layers]: at one step, or their gains over the base. noise [layers, layers]: covariance of the scores' noise
    (`score_arrays.gains_at` gives both).
    """
    if not 1 <= keep <= len(layers):
        raise ValueError(f"cannot keep {keep} of {len(layers)} layers")
    expected = depth_gp.posterior(layers, scores, noise).mean
    return sorted(int(layers[i]) for i in np.argsort(-expected, kind="stable")[:keep])
