"""How many runs train at the same time: as many as the cluster has room for, while it grows and shrinks."""

import asyncio
from collections.abc import Callable

LOOK = 5.0
"""Seconds between looks at the cluster."""


class RunSlots:
    """Taken by runs, one each, for as long as they have trainers; `async with`, or acquire and release.

    Args:
        count: gives the number of rooms there are now. When it falls below what is taken nobody is sent away.
    """

    def __init__(self, count: Callable[[], int]):
        self.count = count
        self.there, self.taken = count(), 0
        self.changed = asyncio.Condition()

    async def acquire(self) -> None:
        """Wait for a room."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.taken < self.there)
            self.taken += 1

    async def release(self) -> None:
        async with self.changed:
            self.taken -= 1
            self.changed.notify_all()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    async def follow(self) -> None:
        """The cluster's size, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            now = await asyncio.to_thread(self.count)
            if now != self.there:
                async with self.changed:
                    self.there = now
                    self.changed.notify_all()
