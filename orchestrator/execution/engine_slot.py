"""Engine slots: each is filled by one engine actor at a time, which is replaced when it fails."""

import asyncio
from collections.abc import Awaitable, Callable

import ray

from .clients import EngineClient


class EngineSlot:
    """One engine as its runs see it, whichever actor it is at the moment.

    Args:
        name: of the first actor (Engine-0); its replacements are Engine-0-again-1, ...
        engine: the first actor, created and not started yet.
        create: creates a replacement by its name.
        start: has an engine load the model and check itself.
    """

    def __init__(
        self,
        name: str,
        engine: EngineClient,
        create: Callable[[str], EngineClient],
        start: Callable[[EngineClient], Awaitable[None]],
    ):
        self.name, self.engine, self.create, self._start = name, engine, create, start
        self.generation = 0
        """Number of replacements. An engine has no run's weights but those pushed to its own generation."""
        self.attempts = 0
        """Number of actors created as replacements, those that did not start among them."""
        self.changing = asyncio.Lock()
        """Held while an engine starts or is replaced."""

    async def start(self) -> None:
        """Start the first engine."""
        async with self.changing:
            await self._start(self.engine)

    async def wait_until_stable(self) -> None:
        """Wait for a start or a replacement that is under way."""
        async with self.changing:
            pass

    async def replace(self, failed: int) -> None:
        """Fill the slot with another engine in place of generation `failed`; one, however many ask for it.

        Raises:
            ray.exceptions.RayError: it does not start either.
        """
        async with self.changing:
            if self.generation != failed:
                return
            self.engine.kill()
            self.attempts += 1
            engine = self.create(f"{self.name}-again-{self.attempts}")
            try:
                await self._start(engine)
            except ray.exceptions.RayError:
                engine.kill()
                raise
            # Only now: no call may reach an engine that has not loaded its model.
            self.engine, self.generation = engine, self.generation + 1
