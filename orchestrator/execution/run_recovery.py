"""Recovery of one run: how often, and what is replaced."""

import asyncio

import ray

from layersweep.orchestrator.planning.plan import Run

from .context import SweepContext
from .engine_slot import EngineSlot
from .failures import CallTimeout, reason_of, retryable


class RunRecovery:
    """Replaces what failed under a run, `recovery.retries` times in a row without a new step between them.

    Args:
        slot: the run's engine slot.
    """

    def __init__(self, run: Run, context: SweepContext, slot: EngineSlot):
        self.run, self.context, self.slot = run, context, slot
        self.failures = self.max_step = 0
        """Failures since the highest step that the run has reached, and that step."""

    async def recover(self, error: Exception, step: int) -> None:
        """See to it that engine and rollout worker answer again. Trainers are the controller's.

        Args:
            step: steps that the run has done.

        Raises:
            Exception: `error`, where nothing can be replaced or too much has failed in a row; else the last error of
                a replacement.
        """
        config = self.context.plan.spec.recovery
        while True:
            if not retryable(error):
                raise error
            self.failures = 1 if step > self.max_step else self.failures + 1
            self.max_step = max(self.max_step, step)
            if self.failures > config.retries:
                raise error
            self.context.progress.say(f"{self.run.name}: {reason_of(error)}; recovering ({self.failures})")
            try:
                await self._replace_what_failed(error, config.patience)
                return
            except (ray.exceptions.RayError, CallTimeout) as another:
                error = another

    async def _replace_what_failed(self, error: Exception, timeout: float) -> None:
        generation = self.slot.generation
        if isinstance(error, CallTimeout) and error.kind == "rollout":
            self.context.actors.rollout_worker.restart()
        # The shared experience may have been lost; the same one is generated again.
        self.context.first_rollouts.pop(self.run.seed, None)
        try:
            await self.slot.wait_until_stable()  # another run, or the health monitor, may be replacing it
            async with asyncio.timeout(timeout):
                await self.slot.engine.stuck_for()
        except (ray.exceptions.RayError, TimeoutError):
            await self.slot.replace(generation)
