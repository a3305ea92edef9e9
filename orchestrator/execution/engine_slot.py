"""The places of a sweep's engines: whichever actor fills one at the moment, and its replacement when it fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import ray


class EngineSlot:
    """One engine, as the runs dealt out to it see it.

    Args:
        create: the name of an actor to the actor, which begins to import.
        start: has an actor load the model and check itself.
        name: of the actors: Engine-0, then Engine-0-again-1, ...
    """

    def __init__(self, create: Callable[[str], Any], start: Callable[[Any], Awaitable[None]], name: str):
        self.create, self._start, self.name = create, start, name
        self.generation = 0
        """Of the actor: it knows no run's weights but those pushed to this generation."""
        self.actor, self.tries = create(name), 0
        self.changing = asyncio.Lock()

    async def start(self) -> None:
        async with self.changing:
            await self._start(self.actor)

    async def renew(self, failed: int) -> None:
        """Another actor in the place of generation `failed`: one, however many ask for it.

        Raises:
            ray.exceptions.RayError: it does not start either.
        """
        async with self.changing:
            if self.generation != failed:
                return
            ray.kill(self.actor)
            self.tries += 1
            actor = self.create(f"{self.name}-again-{self.tries}")
            try:
                await self._start(actor)
            except ray.exceptions.RayError:
                ray.kill(actor)
                raise
            # Only now: nobody may ask an engine that has not loaded its model.
            self.actor, self.generation = actor, self.generation + 1
