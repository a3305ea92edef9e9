"""Do the intervals of controls that nothing trains cover what these controls gain over all draws?

`python -m tests.simulations.control_coverage`

Sweeps of three layers whose training runs differ between seeds, and controls that hardly do: random directions, each
seed's another draw, and constant rewards, whose weights are the base's. A response is right with a probability whose
logit is the prompt's difficulty, plus what the run gained, plus an effect of a draw on the prompt. The truth is
integrated, not sampled.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from layersweep.orchestrator.statistics.contribution import contribution_table
from tests.simulations.coverage import mean_score

GAINS = {"full": 2.6, "layer-00": 1.9, "layer-01": 2.2, "layer-02": 1.6}


@dataclass(frozen=True)
class Controls:
    """Controls of a sweep; standard deviations are on the logit scale."""

    control: str = "random_direction"
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
        start = mean_score(self.base, self.difficulty_sd)
        of_draw = float(np.hypot(self.draw_sd, self.draw_prompt_sd))
        control = mean_score(self.base, float(np.hypot(self.difficulty_sd, of_draw)))
        full = mean_score(self.base + GAINS["full"], float(np.hypot(self.difficulty_sd, self.seed_sd)))
        return float(control), float((control - start) / (full - start))

    def sweep(self, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Scores, a row a prompt, and what the selections are."""
        difficulty = self.difficulty_sd * rng.standard_normal(self.prompts)
        runs = {("base", 0): np.zeros(self.prompts)}
        for seed in range(self.seeds):
            for name, gain in GAINS.items():
                runs[name, seed] = gain + self.seed_sd * rng.standard_normal() * np.ones(self.prompts)
            for number in range(self.count):
                on_prompt = self.draw_prompt_sd * rng.standard_normal(self.prompts)
                runs[f"control-{number}", seed] = self.draw_sd * rng.standard_normal() + on_prompt
        scores = pd.concat([
            pd.DataFrame({
                "selection": name, "seed": seed, "step": 0, "suite": "s", "split": "final", "sample": 0,
                "prompt": np.arange(self.prompts).astype(str),
                "score": rng.binomial(self.samples, 1 / (1 + np.exp(-(self.base + logit + difficulty)))) / self.samples,
            })
            for (name, seed), logit in runs.items()
        ])  # fmt: skip
        names = pd.Series(scores["selection"].unique())
        control = names.str.startswith("control")
        kind = np.select([control, names.str.startswith("layer")], ["control", "layer"], names)
        layer = names.str.extract(r"layer-(\d+)")[0].astype("Int64")
        known = pd.DataFrame({"selection": names, "kind": kind, "layer": layer})
        return scores, known.assign(control=np.where(control, self.control, None))


def coverage(world: Controls, sweeps: int) -> dict[str, float]:
    """Shares of the intervals of score and C that hold the truth, and the median width of those of C."""
    score, contribution = world.truth()
    held, widths = {"score": [], "contribution": []}, []
    for index in range(sweeps):
        rows = contribution_table(*world.sweep(np.random.default_rng([index, world.seeds, world.count])))
        rows = rows[rows["kind"] == "control"]
        for name, truth in (("score", score), ("contribution", contribution)):
            held[name] += rows[f"{name}_low"].le(truth).mul(rows[f"{name}_high"].ge(truth)).tolist()
        widths += (rows["contribution_high"] - rows["contribution_low"]).tolist()
    return {name: float(np.mean(found)) for name, found in held.items()} | {"width": float(np.median(widths))}


def main() -> None:
    still = {"control": "constant_reward", "draw_sd": 0.0, "draw_prompt_sd": 0.0}
    cases = [
        Controls(),
        Controls(seeds=2),
        Controls(draw_sd=0.3),
        Controls(count=1),
        Controls(count=1, draw_sd=0.3, seeds=5),
        Controls(count=1, **still),
        Controls(count=3, **still),
    ]
    print(
        f"{'control':<18}{'count':>6}{'seeds':>6}{'sd':>5}{'score':>8}{'C':>7}{'width':>7}   (with the runs' variance)"
    )
    for world in cases:
        found = coverage(world, 300)
        before = coverage(Controls(**{**vars(world), "control": "random_reward"}), 100)
        print(
            f"{world.control:<18}{world.count:>6}{world.seeds:>6}{world.draw_sd:>5}{found['score']:>8.3f}"
            f"{found['contribution']:>7.3f}{found['width']:>7.3f}   {before['contribution']:.3f} {before['width']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
