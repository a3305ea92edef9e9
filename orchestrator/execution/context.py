"""State that the runs of a sweep share while it lasts."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from layersweep.orchestrator.planning.plan import Plan
from layersweep.workers.config import LearningRates

from .actors import SweepActors
from .clients import EngineClient, Produced
from .failures import AdaptiveTimeouts, BaseModelChanged, reach_files
from .halving_barrier import SuccessiveHalvingBarrier
from .progress import Progress
from .slots import Hold, Slots

RUNS = "runs"
"""The one key of `SweepContext.run_slots`."""


@dataclass
class SweepContext:
    """The shared state of one start of the driver."""

    plan: Plan
    actors: SweepActors
    progress: Progress
    tasks: asyncio.TaskGroup
    """Owns tasks that outlive the call that starts them; the driver ends with it."""
    timeouts: AdaptiveTimeouts
    max_concurrent_runs: int
    """Runs that may have trainers at the same time, as the cluster is now."""
    record_base_digest: Callable[[str], None]
    """Writes the digest into the sweep's manifest."""
    base_digest: str | None = None
    """Digest of the base's weights, which no run may change; None until a trainer has reported it."""
    learning_rates: LearningRates | None = None
    """Learning rates of all runs but tuning trials; None until tuning has finished."""
    halving: SuccessiveHalvingBarrier | None = None
    """Barrier of a search."""
    release_while_paused: bool = False
    """True where a search's paused runs must give up their trainers."""
    first_rollouts: dict[int, dict[int, Produced]] = field(default_factory=dict)
    """Experience by the base, by seed and step: that of the first step, which all runs of a seed share, and with a
    staleness of 1 that of the second."""
    failed: bool = False
    """Something besides a run has failed: a score, or a decision."""
    ray_lost: bool = False
    """Ray is gone: nothing can be saved or told any more."""
    told: set[str] = field(default_factory=set)
    run_slots: Slots[str] = field(init=False)
    cpu_seconds: float = field(default_factory=time.process_time)
    """CPU seconds of this process when `own_cpu_seconds` was last called."""

    def __post_init__(self) -> None:
        self.run_slots = Slots(lambda key: self.max_concurrent_runs)

    def run_slot(self) -> Hold[str]:
        """Request one run's permission to have trainers; to be acquired."""
        return self.run_slots.hold(RUNS)

    def first_rollout(self, seed: int, engine: EngineClient, step: int = 0) -> Produced:
        """Generate a first step's experience: once for all runs of a seed, since every run is still the base."""
        by_step = self.first_rollouts.setdefault(seed, {})
        if step not in by_step:
            by_step[step] = self.actors.rollout_worker.rollout(engine, None, 0, seed, step)
        return by_step[step]

    def tell(self, notices: Sequence[str] | None) -> None:
        """Say what an actor has to tell the user, each thing once: runs share results, and actors are replaced."""
        for notice in notices or ():
            if notice not in self.told:
                self.told.add(notice)
                self.progress.say(notice)

    async def check_base(self, digest: str) -> None:
        """Hold a trainer's base weights against those that the sweep began with.

        Raises:
            BaseModelChanged: they are others.
            StoreUnavailable: the digest could not be recorded.
        """
        if self.base_digest is None:
            self.base_digest = digest
            await reach_files("the sweep's manifest", self.record_base_digest, digest)
        if digest != self.base_digest:
            raise BaseModelChanged(
                f"the base model's weights have the digest {digest}, the sweep began with {self.base_digest}"
            )

    def own_cpu_seconds(self) -> float:
        """Count this process's CPU seconds since the last call, Ray's client included: their sum is all."""
        before, self.cpu_seconds = self.cpu_seconds, time.process_time()
        return self.cpu_seconds - before
