"""Is the layer that a search finds as good as an exhaustive scan's? `python -m tests.simulations.search_regret`

A layer's gain rises and flattens at a pace of its own: C_k (1 - exp(-t / pace)) / (1 - exp(-1 / pace)), t the share of
the steps trained. A score carries what the prompts happen to favour in a run, which stays from rung to rung and to the
end, as all of these are scored on the prompts of the selection split; and the sampling of responses, new every time and
halved by four times the samples. The two comparators train every layer to the end: one takes the best score, the other
scores its best three again as the search does its finalists.
"""

from functools import partial

import numpy as np

from layersweep.orchestrator.statistics.halving_schedule import FINAL_SAMPLES, HalvingSchedule, cost, survivors
from tests.simulations.profiles import shapes

STEPS = 200
ON_PROMPTS, SAMPLING, BASE = 0.07, 0.115, 0.09  # standard deviations in C: 500 prompts, 4 samples, 6.7 points of gain


def paces(rng, profile: np.ndarray, best_slowest: bool) -> np.ndarray:
    """How much of the steps each layer takes to learn most of what it will."""
    pace = np.exp(rng.uniform(np.log(0.15), np.log(0.6), len(profile)))
    if best_slowest:
        pace = np.sort(pace)[profile.argsort().argsort()]
    return pace


class Noise:
    """Scores of the layers, in C, at any share of the steps."""

    def __init__(self, rng, profile: np.ndarray, best_slowest: bool):
        self.rng, self.profile = rng, profile
        self.pace = paces(rng, profile, best_slowest)
        self.favour = ON_PROMPTS * rng.standard_normal(len(profile))

    def score(self, layers, share: float, samples: int = 1) -> np.ndarray:
        layers = np.asarray(layers)
        learned = np.expm1(-share / self.pace[layers]) / np.expm1(-1 / self.pace[layers])
        noise = self.favour[layers] + SAMPLING / np.sqrt(samples) * self.rng.standard_normal(len(layers))
        return self.profile[layers] * learned + noise + BASE * self.rng.standard_normal()

    def final(self, layers) -> np.ndarray:
        return self.score(layers, 1.0, FINAL_SAMPLES)


def search(world: Noise, schedule: HalvingSchedule) -> int:
    """The layer found."""
    alive = list(range(len(world.profile)))
    *early, _ = schedule.rungs(len(alive), STEPS)
    for rung in early:
        noise = (ON_PROMPTS**2 + SAMPLING**2 / rung.samples) * np.eye(len(alive)) + BASE**2
        alive = survivors(alive, world.score(alive, rung.step / STEPS, rung.samples), noise, rung.keep)
    return alive[int(world.final(alive).argmax())]


def exhaustive(world: Noise, again: int) -> int:
    """The layer with the best score, or with the best second score among the `again` best."""
    scores = world.score(range(len(world.profile)), 1.0)
    if again == 1:
        return int(scores.argmax())
    best = np.argsort(-scores)[:again]
    return int(best[world.final(best).argmax()])


def regrets(profile: np.ndarray, budgets, trials: int, best_slowest: bool = False) -> dict:
    """Mean true C of the layer found, less that of the best layer: by budget, and for both comparators."""
    methods = {budget: partial(search, schedule=HalvingSchedule(budget)) for budget in budgets}
    methods |= {"scan": partial(exhaustive, again=1), "rescored scan": partial(exhaustive, again=3)}
    regret = {}
    for name, method in methods.items():
        worlds = (Noise(np.random.default_rng([1, i]), profile, best_slowest) for i in range(trials))
        regret[name] = float(np.mean([profile[method(world)] for world in worlds]) - profile.max())
    return regret


def main() -> None:
    budgets = (0.12, 0.15, 0.2, 0.3, 0.5)
    trials = 200
    print(f"true C found less the best layer's, mean of {trials}; standard error about 0.008")
    print("share of the training steps of all layers, and of those and the full run:")
    for budget in budgets:
        steps = cost(HalvingSchedule(budget).rungs(28, STEPS)) / STEPS
        rungs = [(r.layers, r.step / STEPS) for r in HalvingSchedule(budget).rungs(28, STEPS)]
        print(f"  budget {budget}: {steps / 28:.3f}, {(steps + 1) / 29:.3f}   layers to share of steps {rungs}")
    print(f"{'profile':<24}{'scan':>8}{'rescored':>10}" + "".join(f"{budget:>8}" for budget in budgets))
    cases = [(name, profile, False) for name, profile in shapes().items()]
    cases += [(f"{name}, best slowest", profile, True) for name, profile in shapes().items()]
    for name, profile, best_slowest in cases:
        seen = regrets(profile, budgets, trials, best_slowest)
        row = "".join(f"{seen[budget]:>8.3f}" for budget in budgets)
        print(f"{name:<24}{seen['scan']:>8.3f}{seen['rescored scan']:>10.3f}{row}", flush=True)


if __name__ == "__main__":
    main()
