"""The score of the base, which every contribution is counted from and every choice among runs needs."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from layersweep.orchestrator.planning.plan import Run
from layersweep.policies.selection import Selection

from .context import SweepContext
from .evaluation import score_or_say
from .failures import BaseNotScored, StoreUnavailable, reach_store, reason_of


class BaseScore:
    """Scoring of the base on the selection split, once, beside the runs' first steps. A failure is the base's own.

    Args:
        context: shared by all runs.
        create_task: starts what a stop of the sweep cancels.
    """

    def __init__(self, context: SweepContext, create_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]):
        self.context = context
        self.run = Run(Selection.base(), context.plan.spec.seeds[0])
        self.failure: str | None = None
        """Reason why the base could not be scored."""
        self.task = create_task(self._score())

    async def wait(self) -> None:
        """Wait until the base is scored or could not be, or a stop has cancelled that."""
        await asyncio.wait({self.task})

    async def require(self) -> None:
        """Wait until the base is scored.

        Raises:
            BaseNotScored: it could not be.
            asyncio.CancelledError: a stop has cancelled it.
        """
        await asyncio.shield(self.task)
        if self.failure:
            raise BaseNotScored(f"the base has no score: {self.failure}")

    async def _score(self) -> None:
        began = time.monotonic()
        self.failure = await score_or_say(self.run, self.context, 0)
        status, seconds = "failed" if self.failure else "completed", time.monotonic() - began
        changes = {"status": status, "reason": self.failure, "seconds": seconds}
        update = partial(self.context.actors.collector.update_run, self.run.selection.name, self.run.seed, **changes)
        try:
            await reach_store("the base's metadata", update)
        except StoreUnavailable as error:
            self.failure = reason_of(error)
