"""What the runs of a sweep share while it lasts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from layersweep.orchestrator.planning.plan import Plan
from layersweep.policies.selection import run_name

from .actors import SweepActors
from .failures import AdaptiveTimeouts
from .halving_barrier import SuccessiveHalvingBarrier
from .progress import Progress
from .run_slots import RunSlots


@dataclass
class SweepContext:
    """Of one start of the driver."""

    plan: Plan
    stage: SweepActors
    progress: Progress
    rooms: RunSlots
    """One is taken by every run that has trainers."""
    deadlines: AdaptiveTimeouts
    halving: SuccessiveHalvingBarrier | None = None
    crowded: bool = False
    """Whether a search's paused runs must give their trainers back."""
    trunk: str | None = None
    """Digest of the base's weights, once a trainer has told it."""
    on_trunk: Callable[[str], None] = lambda digest: None
    first: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """By seed: the first step's experience, which all its runs share."""
    lost: bool = False
    """Ray is gone: nothing can be saved or told any more."""
    cpu: float = field(default_factory=time.process_time)

    def first_rollout(self, seed: int, engine: Any) -> tuple[Any, Any]:
        """References to its metrics and experience; written once for all runs of a seed."""
        if seed not in self.first:
            name = f"RolloutWorker.rollout {run_name('base', seed)}"
            named = self.stage.rollouts.rollout.options(num_returns=2, name=name)
            self.first[seed] = tuple(named.remote(engine, None, 0, seed, 0))
        return self.first[seed]

    def own_cpu(self) -> float:
        """CPU seconds of this process, Ray's client in it included, since any run's last step: their sum is all."""
        before, self.cpu = self.cpu, time.process_time()
        return self.cpu - before
