"""Alternating phases of generation and training, where both do not fit into a GPU's memory at the same time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

Phase = Literal["generation", "training"]
OTHER: dict[Phase, Phase] = {"generation": "training", "training": "generation"}


class SleepPhases:
    """A lock for two groups: any number of runs generate together, or any number train together.

    Once a task waits for the other phase, the current phase admits no new tasks; when its tasks finish, all waiters of
    the other phase start together. A task therefore waits for at most the current phase plus one phase of the other
    kind. The first phase is generation, without a switch.

    Args:
        switch: frees memory for the phase that comes next; no task runs meanwhile. If it fails, the tasks that wait
            for that phase get its error.
    """

    def __init__(self, switch: Callable[[Phase], Awaitable[None]]):
        self.switch = switch
        self.phase: Phase | None = "generation"
        """Current phase; None during a switch, and after one that failed."""
        self.last: Phase = "generation"
        self.working = 0
        """Tasks in the current phase."""
        self.waiting: dict[Phase, list[asyncio.Future[None]]] = {"generation": [], "training": []}
        self.switching: asyncio.Task[None] | None = None
        """Task of a switch under way. It serves all waiters, so none of them may own it: it outlives a waiter that is
        cancelled, and ends by itself."""

    @contextlib.asynccontextmanager
    async def hold(self, phase: Phase) -> AsyncIterator[None]:
        """Be in a phase for the time of a `with` block.

        Raises:
            Exception: what `switch` raised.
        """
        if self.phase == phase and not self.waiting[OTHER[phase]]:
            self.working += 1
        else:
            await self._wait(phase)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, phase: Phase) -> None:
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[phase].append(admitted)
        self._advance()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted in self.waiting[phase]:
                self.waiting[phase].remove(admitted)
                self._advance()
            elif not admitted.cancelled() and admitted.exception() is None:
                self._leave()  # admitted in the same moment
            raise

    def _leave(self) -> None:
        self.working -= 1
        self._advance()

    def _advance(self) -> None:
        """Admit waiters of the current phase if no other phase is asked for; switch once no task runs."""
        if self.phase and not self.waiting[OTHER[self.phase]]:
            self._admit(self.phase)  # waiters behind others that have been cancelled
        elif not (self.working or self.switching):
            phase = next((phase for phase in (OTHER[self.last], self.last) if self.waiting[phase]), None)
            if phase:
                self.switching = asyncio.get_running_loop().create_task(self._switch(phase))

    async def _switch(self, phase: Phase) -> None:
        self.phase = None
        try:
            await self.switch(phase)
            self.phase = self.last = phase
            self._admit(phase)
        except Exception as error:  # handed to the tasks that need the phase
            self._admit(phase, error)
        finally:
            self.switching = None
            self._advance()

    def _admit(self, phase: Phase, error: Exception | None = None) -> None:
        admitted, self.waiting[phase] = self.waiting[phase], []
        for waiter in admitted:
            if waiter.done():  # cancelled, and its task does not know yet
                continue
            if error:
                waiter.set_exception(error)
            else:
                self.working += 1
                waiter.set_result(None)


class NoSleepPhases:
    """The same interface where generation and training fit into memory together: nothing waits."""

    def hold(self, phase: Phase) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()
