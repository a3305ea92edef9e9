"""Updates take turns on the CPUs of a node."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence


class UpdateSlots:
    """As many ranks of a node update at the same time as it has CPUs, first come, first served.

    Ray lets more trainers onto a node than it has CPUs, since most of them wait for the engine. Were they to update
    all at once they would end together, long after the first could have, and leave the engine without work until then;
    and the activations of all of them would be in memory.

    Args:
        places: a node's, by its Ray id.
    """

    def __init__(self, places: Callable[[str], int]):
        self.places = places
        self.taken: Counter[str] = Counter()
        self.queues: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def of(self, nodes: Sequence[str]) -> AsyncIterator[None]:
        """A turn for ranks on these nodes, a node for each rank; more ranks than a node has places get it for
        themselves."""
        asked = Counter(nodes)
        async with contextlib.AsyncExitStack() as first_in_line:
            for node in sorted(asked):  # in the same order by everybody, so that none waits for another in a ring
                await first_in_line.enter_async_context(self.queues[node])
            async with self.changed:
                await self.changed.wait_for(lambda: all(self._fits(node, count) for node, count in asked.items()))
                self.taken += asked
        try:
            yield
        finally:
            async with self.changed:
                self.taken -= asked
                self.changed.notify_all()

    def _fits(self, node: str, count: int) -> bool:
        return not self.taken[node] or self.taken[node] + count <= self.places(node)
