"""Successive halving while it runs: layer runs meet at the end of each rung, and the weaker ones stop there."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from layersweep.orchestrator.statistics.halving_schedule import Rung

from .failures import RungDecisionFailed, reason_of


class SuccessiveHalvingBarrier:
    """The barrier at which layer runs wait for each other.

    Args:
        rungs: of layersweep.orchestrator.statistics.halving_schedule.HalvingSchedule.
        layers: layer of each layer run by name (several seeds of a layer are several runs).
        choose: awaited once per rung with the layers there; returns the layers that train on.
        decided: layers kept at earlier rungs of a sweep that is resumed, by step. Decisions are added to it.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        layers: dict[str, int],
        choose: Callable[[Rung, list[int]], Awaitable[list[int]]],
        decided: dict[int, list[int]] | None = None,
    ):
        self.rungs = {rung.step: rung for rung in rungs[:-1]}
        self.sample_factors = {rung.step: rung.samples for rung in rungs}
        self.layers, self.choose, self.decided = dict(layers), choose, {} if decided is None else decided
        promoted = set.intersection(set(layers.values()), *map(set, self.decided.values()))
        self.runs = {name: layer for name, layer in layers.items() if layer in promoted}
        """Runs that no rung has stopped, with their layers."""
        self.waiting: set[str] = set()
        self.step = 0
        """Rung that runs wait at."""
        self.opened: asyncio.Future[None] | None = None
        """Resolved for all waiters at once when the rung is decided."""

    def sample_factor(self, name: str, step: int) -> int:
        """Multiple of the usual samples with which a run is scored after `step` steps."""
        return self.sample_factors.get(step, 1) if name in self.runs else 1

    def decides(self, name: str, step: int) -> bool:
        """Whether there is a rung for this run after `step` steps."""
        return name in self.layers and step in self.rungs

    async def survives_rung(self, name: str, step: int) -> bool:
        """Wait for the other runs of the rung; whether this one trains on. Called once a run is scored.

        Raises:
            RungDecisionFailed: `choose` failed; every waiting run gets this.
        """
        if step in self.decided:
            return self.layers[name] in self.decided[step]
        self.opened = self.opened or asyncio.get_running_loop().create_future()
        self.waiting.add(name)
        self.step, opened = step, self.opened
        await self._open_if_complete()
        await asyncio.shield(opened)  # one waiter that is cancelled does not cancel the others' future
        return name in self.runs

    async def withdraw(self, name: str) -> None:
        """Take out a run that failed: the others need not wait for it."""
        if self.runs.pop(name, None) is not None and self.waiting:
            await self._open_if_complete()

    async def _open_if_complete(self) -> None:
        if not self.runs.keys() <= self.waiting:
            return
        layers, rung = sorted(set(self.runs.values())), self.rungs[self.step]
        # The next rung has a future of its own.
        (opened, self.opened), self.waiting = (self.opened, None), set()
        try:
            promoted = await self.choose(rung, layers) if len(layers) > rung.keep else layers
        except Exception as error:  # whatever it is, no run may wait for a decision that does not come
            opened.set_exception(RungDecisionFailed(f"the search could not decide after step {rung.step}: "
                                                    f"{reason_of(error)}"))  # fmt: skip
            opened.exception()  # a waiter may have been cancelled
            return
        except asyncio.CancelledError:
            opened.cancel()
            raise
        self.decided[rung.step] = promoted
        self.runs = {name: layer for name, layer in self.runs.items() if layer in promoted}
        opened.set_result(None)
