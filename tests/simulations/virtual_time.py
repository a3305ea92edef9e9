"""An asyncio loop whose waiting takes no time: its clock jumps to the next timer. What it computes does take time."""

import asyncio
import selectors
import time
from collections.abc import Callable
from typing import Any


class Skipping(selectors.DefaultSelector):
    """Waits by moving the clock on."""

    skipped = 0.0
    """Seconds."""

    def select(self, timeout: float | None = None) -> list[Any]:
        """Raises RuntimeError where nothing would ever happen."""
        if timeout is None:
            raise RuntimeError("every task waits, and for nothing that will come")
        self.skipped += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time is what was waited for, and what was worked.

    Args:
        worked: seconds that the process under simulation has been busy.
    """

    def __init__(self, worked: Callable[[], float]):
        self.skipping, self.worked = Skipping(), worked
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.skipped + self.worked()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future:
        """At once and here: a thread's real waiting would have no place on this clock, and its work counts."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class VirtualClock:
    """Stands in for the module `time` in code that runs on the current loop."""

    process_time = staticmethod(time.process_time)

    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()


class Server:
    """Does one thing after the other, in the order asked: a GPU, or an actor with one thread."""

    def __init__(self):
        self.free_at = self.busy = 0.0

    async def serve(self, seconds: float) -> None:
        """Returns when it is done."""
        now = asyncio.get_running_loop().time()
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        await asyncio.sleep(self.free_at - now)
