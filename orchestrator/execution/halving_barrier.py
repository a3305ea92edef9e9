"""A search in progress: layer runs meet at the end of each rung, and the weaker ones stop there."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from layersweep.orchestrator.statistics.halving_schedule import Rung


class SuccessiveHalvingBarrier:
    """Where layer runs wait for each other.

    Args:
        rungs: of layersweep.orchestrator.statistics.halving_schedule.Schedule.
        layers: the layer of each layer run by name (several seeds of a layer are several runs).
        choose: awaited once per rung with the layers there and how many to keep; gives those that go on.
        decided: what was chosen at earlier rungs of a sweep that goes on, by step. Decisions are added to it.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        layers: dict[str, int],
        choose: Callable[[Rung, list[int]], Awaitable[list[int]]],
        decided: dict[int, list[int]] | None = None,
    ):
        self.rungs = {rung.step: rung for rung in rungs[:-1]}
        self.factors = {rung.step: rung.samples for rung in rungs}
        self.layers, self.choose, self.decided = dict(layers), choose, {} if decided is None else decided
        kept = set.intersection(set(layers.values()), *map(set, self.decided.values()))
        self.runs = {name: layer for name, layer in layers.items() if layer in kept}
        """Those that no rung has stopped."""
        self.waiting: set[str] = set()
        self.error: Exception | None = None
        self.step = 0
        self.opened = asyncio.Event()

    def samples(self, name: str, step: int) -> int:
        """Times the usual number, where a layer run is scored for a decision."""
        return self.factors.get(step, 1) if name in self.runs else 1

    async def goes_on(self, name: str, step: int) -> bool:
        """Called by each layer run once it has been scored at the end of a rung; whether it trains on.

        Raises:
            Exception: what `choose` raised, to all who waited for it.
        """
        if step in self.decided:
            return self.layers[name] in self.decided[step]
        self.waiting.add(name)
        self.step = step
        opened = self.opened
        await self._open_if_complete()
        await opened.wait()
        if self.error:
            raise self.error
        return name in self.runs

    async def leave(self, name: str) -> None:
        """A run failed: the others need not wait for it."""
        if self.runs.pop(name, None) is not None and self.waiting:
            await self._open_if_complete()

    async def _open_if_complete(self) -> None:
        if not self.runs.keys() <= self.waiting:
            return
        layers, rung = sorted(set(self.runs.values())), self.rungs[self.step]
        try:
            kept = await self.choose(rung, layers) if len(layers) > rung.keep else layers
        except Exception as error:  # whatever it is, nobody may wait for a decision that does not come
            self.error, kept = error, layers
        else:
            self.decided[rung.step] = kept
        self.runs = {name: layer for name, layer in self.runs.items() if layer in kept}
        self.waiting, opened = set(), self.opened
        self.opened = asyncio.Event()
        opened.set()
