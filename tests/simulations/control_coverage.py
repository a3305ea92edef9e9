"""Do the intervals of controls that nothing trains cover what these controls gain over all draws?

`python -m tests.simulations.control_coverage`

Sweeps of three layers whose training runs differ between seeds, and controls that hardly do: random directions, each
seed's another draw, and constant rewards, whose weights are the base's. A response is right with a probability whose
logit is the prompt's difficulty, plus what the run gained, plus an effect of a draw on the prompt. The truth is
integrated, not sampled.
"""

from dataclasses import dataclass

import numpy as np

from layersweep.orchestrator.statistics import intervals
from tests.simulations.coverage import mean_score

GAINS = (1.9, 2.2, 1.6, 2.6)
"""Of three layers and full, on the logit scale, on which all standard deviations are too."""


@dataclass(frozen=True)
class Controls:
    """A sweep with controls of one type."""

    count: int = 6
    seeds: int = 3
    draw_sd: float = 0.1
    draw_prompt_sd: float = 0.3
    prompts: int = 256
    samples: int = 4
    base: float = -2.3
    difficulty_sd: float = 1.5
    seed_sd: float = 0.25

    def truth(self) -> tuple[float, float]:
        """Mean score of a control over all draws and prompts, and its C."""
        of_draw = float(np.hypot(self.draw_sd, self.draw_prompt_sd))
        start = mean_score(self.base, self.difficulty_sd)
        control = mean_score(self.base, float(np.hypot(self.difficulty_sd, of_draw)))
        full = mean_score(self.base + GAINS[-1], float(np.hypot(self.difficulty_sd, self.seed_sd)))
        return float(control), float((control - start) / (full - start))

    def sweep(self, rng: np.random.Generator) -> np.ndarray:
        """Scores [controls + 5, seeds, prompts], ordered controls, layers, full, base."""
        shape = (self.count, self.seeds, self.prompts)
        difficulty = self.base + self.difficulty_sd * rng.standard_normal(self.prompts)
        draws = self.draw_sd * rng.standard_normal(shape[:2])[..., None] + self.draw_prompt_sd * rng.standard_normal(
            shape
        )
        trained = np.array(GAINS)[:, None] + self.seed_sd * rng.standard_normal((len(GAINS), self.seeds))
        trained = np.broadcast_to(trained[..., None], (len(GAINS), *shape[1:]))
        logits = np.concatenate([draws, trained, np.zeros((1, *shape[1:]))]) + difficulty
        suite = rng.binomial(self.samples, 1 / (1 + np.exp(-logits))) / self.samples
        suite[-1, 1:] = np.nan
        return suite


def judge(suite: np.ndarray, own: bool = True) -> np.ndarray:
    """Intervals [controls, 4] of score and C, as `layersweep.orchestrator.statistics.contribution` has them.

    Args:
        own: whether the controls have their own variance between draws, or as others that of the training runs.
    """
    count, seeds, base, full = len(suite) - 5, suite.shape[1], len(suite) - 1, len(suite) - 2
    means = intervals.seed_means([suite])
    runs = intervals.seed_variance([suite], range(count, base))
    draws = intervals.seed_variance([suite], range(count)) if own else runs

    def t_of(variance: float, of_full: float = 0.0) -> float:
        parts = [(draws.with_noise / seeds, draws.dof), (of_full, runs.dof)]
        return intervals.critical(intervals.effective_dof(variance, parts) if own else runs.dof)

    found = []
    for control in range(count):
        alone, gain = intervals.paired(means, [control]), intervals.paired(means, [control, full], base)
        variance = alone.covariance[0, 0] + draws.of_mean(seeds)
        half = t_of(variance) * variance**0.5
        value, of_full = gain.mean[0] / gain.mean[1], runs.of_full(full, seeds)
        var_gain, var_full = gain.covariance[0, 0] + draws.of_mean(seeds), gain.covariance[1, 1] + of_full
        t = t_of(var_gain - 2 * value * gain.covariance[0, 1] + value**2 * var_full, value**2 * of_full)
        ends = intervals.fieller(*gain.mean, var_gain, gain.covariance[0, 1], var_full, t)
        found.append([alone.mean[0] - half, alone.mean[0] + half, *map(float, ends)])
    return np.array(found)


def coverage(world: Controls, sweeps: int, own: bool = True) -> tuple[float, float, float]:
    """Shares of the intervals of score and of C that hold the truth, and the median width of those of C."""
    score, contribution = world.truth()
    found = np.concatenate([judge(world.sweep(np.random.default_rng([i, 7])), own) for i in range(sweeps)])
    held = (found[:, ::2] <= [score, contribution]) & ([score, contribution] <= found[:, 1::2])
    return *map(float, held.mean(axis=0)), float(np.median(found[:, 3] - found[:, 2]))


def main() -> None:
    sweeps = 1000
    still = {"draw_sd": 0.0, "draw_prompt_sd": 0.0}
    cases = {
        "6 random directions": Controls(),
        "6, 2 seeds": Controls(seeds=2),
        "6, draws three times as different": Controls(draw_sd=0.3),
        "1": Controls(count=1),
        "1, 5 seeds, three times as different": Controls(count=1, seeds=5, draw_sd=0.3),
        "1, 3 seeds, three times as different": Controls(count=1, draw_sd=0.3),
        "1 constant reward": Controls(count=1, **still),
        "3 constant rewards": Controls(count=3, **still),
    }
    print(f"{'controls':<40}{'score':>7}{'C':>7}{'width':>7}   with the runs' variance   ({sweeps} sweeps)")
    for name, world in cases.items():
        found, others = coverage(world, sweeps), coverage(world, sweeps, own=False)
        print(
            f"{name:<40}{found[0]:>7.3f}{found[1]:>7.3f}{found[2]:>7.3f}", *(f"{x:>7.3f}" for x in others), flush=True
        )


if __name__ == "__main__":
    main()
