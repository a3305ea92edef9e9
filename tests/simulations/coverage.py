"""Do 95 % intervals of C cover it, and does a full run that gains nothing get a C?

`python -m tests.simulations.coverage`

Sweeps of 28 layers with the published profile as the truth. A response is right with a probability whose logit is the
prompt's difficulty, plus what the run gained, plus an effect of the run on the prompt, of the seed on the run, and of
the seed on the prompt. The truth is integrated, not sampled: at one seed the ratio of the models that were trained,
over all prompts; at several the ratio of the means over all seeds.
"""

from dataclasses import dataclass

import numpy as np

from layersweep.orchestrator.statistics import depth_gp, intervals
from tests.simulations.profiles import published

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SHIFTS = np.linspace(-1.5, 3.0, 451)


def mean_score(logit: np.ndarray, sd: float) -> np.ndarray:
    """E of sigmoid(logit + sd z) over a standard normal z."""
    return (1 / (1 + np.exp(-(np.asarray(logit)[..., None] + sd * NODES)))) @ WEIGHTS


@dataclass(frozen=True)
class World:
    """A population of prompts and training runs; standard deviations are on the logit scale."""

    contribution: np.ndarray
    gain: float = 0.067
    base: float = -0.35  # mean logit of the base: 44 % right, as the published base
    difficulty_sd: float = 2.0
    run_prompt_sd: float = 0.7
    seed_prompt_sd: float = 0.5
    seed_sd: float = 0.1
    full_seed_sd: float = 0.1

    @property
    def prompt_sd(self) -> float:
        return float(np.sqrt(self.difficulty_sd**2 + self.run_prompt_sd**2 + self.seed_prompt_sd**2))

    @property
    def seed_sds(self) -> np.ndarray:
        return np.append(np.full(len(self.contribution), self.seed_sd), self.full_seed_sd)

    def logits(self) -> np.ndarray:
        """[layers + 1]: the mean logit of each layer's run and of full's that gives the wanted mean over all seeds."""
        start = mean_score(self.base, self.difficulty_sd)
        wanted = start + self.gain * np.append(self.contribution, 1.0)
        found = []
        for value, sd in zip(wanted, self.seed_sds, strict=True):
            curve = mean_score(self.base + SHIFTS, float(np.hypot(self.prompt_sd, sd)))
            found.append(self.base + np.interp(value, curve, SHIFTS))
        return np.array(found)

    def sweep(self, rng, seeds: int, prompts: tuple[int, ...], samples: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Suites [layers + 2, seeds, prompts], ordered layers, full, base; and the true C of the layers."""
        logits = self.logits()[:, None] + self.seed_sds[:, None] * rng.standard_normal((len(self.seed_sds), seeds))
        suites = []
        for n in prompts:
            difficulty = self.difficulty_sd * rng.standard_normal(n)
            on_prompt = self.run_prompt_sd * rng.standard_normal((len(logits), 1, n))
            on_seed = self.seed_prompt_sd * rng.standard_normal((len(logits), seeds, n))
            right = 1 / (1 + np.exp(-(logits[:, :, None] + difficulty + on_prompt + on_seed)))
            suite = np.full((len(logits) + 1, seeds, n), np.nan)
            suite[:-1] = rng.binomial(samples, right) / samples
            suite[-1, 0] = rng.binomial(samples, 1 / (1 + np.exp(-(self.base + difficulty)))) / samples
            suites.append(suite)
        if seeds > 1 or self.gain == 0:
            return suites, self.contribution
        scores = mean_score(logits[:, 0], self.prompt_sd)
        start = mean_score(self.base, self.difficulty_sd)
        return suites, (scores[:-1] - start) / (scores[-1] - start)


@dataclass(frozen=True)
class Outcome:
    shown: bool
    covered: np.ndarray
    """[layers]: does the interval hold the true C?"""
    width: float
    claimed: float
    """Probability of being the best that the table gives the layer most likely to be it."""
    hit: bool
    """Was it?"""


def judge(suites: list[np.ndarray], truth: np.ndarray, rng: np.random.Generator) -> Outcome:
    """The estimate of `layersweep.orchestrator.statistics.contribution`, on arrays."""
    layers = len(truth)
    full, base = layers, layers + 1
    means = intervals.seed_means(suites)
    seeds = suites[0].shape[1]
    seed = intervals.seed_variance(suites, range(layers + 1))
    gains = intervals.paired(means, range(layers + 1), base)
    var_full = gains.covariance[full, full] + seed.of_full(full, seeds)
    shown = gains.mean[full] > intervals.critical(seed.dof, intervals.NULL_TAIL) * np.sqrt(var_full)
    variance = np.diag(gains.covariance)[:layers] + seed.of_mean(seeds)
    low, high = intervals.fieller(
        gains.mean[:layers],
        gains.mean[full],
        variance,
        gains.covariance[full, :layers],
        var_full,
        intervals.critical(seed.dof),
    )
    noise = gains.covariance[:layers, :layers] + seed.of_mean(seeds) * np.eye(layers)
    draws = depth_gp.posterior(range(layers), gains.mean[:layers], noise).draws(1000, rng)
    chance, _ = depth_gp.top_probabilities(draws, 3)
    favourite = int(chance.argmax())
    return Outcome(
        bool(shown),
        (low <= truth) & (truth <= high),
        float(np.median(high - low)),
        float(chance[favourite]),
        favourite == int(truth.argmax()),
    )


def simulate(world: World, sweeps: int, seeds: int, prompts=(500,), samples: int = 4, start: int = 0) -> list[Outcome]:
    outcomes = []
    for index in range(sweeps):
        rng = np.random.default_rng([start, seeds, index])
        outcomes.append(judge(*world.sweep(rng, seeds, prompts, samples), rng))
    return outcomes


def coverage(outcomes: list[Outcome]) -> float:
    """Share of the intervals shown that hold the truth."""
    return float(np.mean([outcome.covered for outcome in outcomes if outcome.shown]))


def main() -> None:
    sweeps = 500
    profile = published()
    cases = [
        ("1 seed", World(profile), 1, (500,)),
        ("2 seeds", World(profile), 2, (500,)),
        ("3 seeds", World(profile), 3, (500,)),
        ("5 seeds", World(profile), 5, (500,)),
        ("3 seeds, none of their own variance", World(profile, seed_sd=0, full_seed_sd=0), 3, (500,)),
        ("3 seeds, full varies twice as much", World(profile, full_seed_sd=0.2), 3, (500,)),
        ("1 seed, suites of 300, 200 and 40", World(profile), 1, (300, 200, 40)),
        ("3 seeds, suites of 300, 200 and 40", World(profile), 3, (300, 200, 40)),
        ("1 seed, 64 prompts, 3 times the gain", World(profile, gain=0.2), 1, (64,)),
        ("3 seeds, 6 layers, 64 prompts, 3 times the gain", World(profile[::5], gain=0.2), 3, (64,)),
    ]
    print(f"{'case':<50}{'coverage':>9}{'shown':>7}{'width':>7}{'claimed':>9}{'hit':>6}   ({sweeps} sweeps)")
    for name, world, seeds, prompts in cases:
        seen = simulate(world, sweeps, seeds, prompts)
        print(
            f"{name:<50}{coverage(seen):>9.3f}{np.mean([o.shown for o in seen]):>7.2f}"
            f"{np.median([o.width for o in seen]):>7.2f}{np.mean([o.claimed for o in seen]):>9.2f}"
            f"{np.mean([o.hit for o in seen]):>6.2f}",
            flush=True,
        )
    print(f"\n{'zero gain':<50}{'reported':>9}   ({2 * sweeps} sweeps)")
    for name, seeds, sd in [
        ("1 seed, these models gained nothing", 1, 0.0),
        ("1 seed, no gain over seeds but some in this one", 1, 0.1),
        ("3 seeds", 3, 0.1),
        ("5 seeds", 5, 0.1),
    ]:
        seen = simulate(World(np.zeros(28), gain=0.0, seed_sd=sd, full_seed_sd=sd), 2 * sweeps, seeds)
        print(f"{name:<50}{np.mean([o.shown for o in seen]):>9.4f}", flush=True)


if __name__ == "__main__":
    main()
