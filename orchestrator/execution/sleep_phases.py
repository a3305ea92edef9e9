"""Phases of writing and of training, by turns, where both do not fit into a GPU's memory at the same time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

Kind = Literal["writing", "training"]
OTHER: dict[Kind, Kind] = {"writing": "training", "training": "writing"}


class SleepPhases:
    """Any number of runs write together, or any number train together.

    Once somebody waits for the other kind, nobody joins the present phase any more: it ends with those who are in it,
    and then all who wait for the other kind begin together. So nobody waits for more than the present phase to end and,
    where it is of his own kind and others wait for its end too, for one phase of theirs.

    The first phase is writing, without a switch.

    Args:
        switch: makes room for the work that comes next; nobody works meanwhile. Should it fail, those who wait for that
            kind get its error.
    """

    def __init__(self, switch: Callable[[Kind], Awaitable[None]]):
        self.switch = switch
        self.phase: Kind | None = "writing"
        """None while a switch is under way, and after one that failed."""
        self.last: Kind = "writing"
        self.working = 0
        self.waiting: dict[Kind, list[asyncio.Future[None]]] = {"writing": [], "training": []}
        self.switching: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def of(self, kind: Kind) -> AsyncIterator[None]:
        """Work of this kind, for the time of a `with` block.

        Raises:
            Exception: what `switch` raised.
        """
        if self.phase == kind and not self.waiting[OTHER[kind]]:
            self.working += 1
        else:
            await self._wait(kind)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, kind: Kind) -> None:
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[kind].append(called)
        self._pass_on()
        try:
            await called
        except asyncio.CancelledError:
            if called in self.waiting[kind]:
                self.waiting[kind].remove(called)
                self._pass_on()
            elif not called.cancelled() and called.exception() is None:
                self._leave()  # his phase had begun
            raise

    def _leave(self) -> None:
        self.working -= 1
        self._pass_on()

    def _pass_on(self) -> None:
        """To those who wait, once nobody works: the other kind first."""
        if self.phase and not self.waiting[OTHER[self.phase]]:
            self._call(self.phase)  # those who waited behind others that have gone
        elif not (self.working or self.switching):
            kind = next((kind for kind in (OTHER[self.last], self.last) if self.waiting[kind]), None)
            if kind:
                self.switching = asyncio.get_running_loop().create_task(self._switch(kind))

    async def _switch(self, kind: Kind) -> None:
        self.phase = None
        try:
            await self.switch(kind)
            self.phase = self.last = kind
            self._call(kind)
        except Exception as error:  # handed to those who need it
            self._call(kind, error)
        finally:
            self.switching = None
            self._pass_on()

    def _call(self, kind: Kind, error: Exception | None = None) -> None:
        called, self.waiting[kind] = self.waiting[kind], []
        for one in called:
            if one.done():  # cancelled, and not yet told
                continue
            if error:
                one.set_exception(error)
            else:
                self.working += 1
                one.set_result(None)


class NoSleepPhases:
    """Where there is memory for both at the same time."""

    def of(self, kind: Kind) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()
