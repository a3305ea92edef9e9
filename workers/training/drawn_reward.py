"""Rewards that know nothing of the responses, for a sweep's controls."""

from dataclasses import dataclass, replace

import numpy as np

from layersweep.rollout.types import Experience, stable_seed


@dataclass(frozen=True)
class DrawnReward:
    """A reward of 1 with a fixed probability, else 0, whatever the response (Shao et al. 2025, "Spurious Rewards",
    arXiv 2506.10947); with a probability of 1 it is constant."""

    probability: float

    def instead(self, experience: Experience, seed: int, step: int) -> Experience:
        """Return the experience with drawn rewards: one a response, or one an episode, at its last turn.

        Draws follow from seed and step alone: the same on every rank, in every run, and after a resume.
        """
        rows = np.arange(len(experience.reward))
        order = np.lexsort((experience.step, experience.trajectory))
        ends = np.append(np.diff(experience.trajectory[order]) != 0, True)
        last = np.isin(rows, order[ends])
        drawn = np.random.default_rng(stable_seed("reward", seed, step)).random(len(rows)) < self.probability
        return replace(experience, reward=(drawn & last).astype(np.float32))
