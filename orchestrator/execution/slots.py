"""Limits on what runs at the same time: how many runs have trainers, ranks of a node update, trainers share a GPU."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Slots(Generic[K]):
    """A semaphore for each key, with weights, and with capacities that may change at any time.

    First come, first served: a request that does not fit yet is not overtaken by a later one that shares a key with
    it. When a capacity falls below what is held, nothing is revoked.

    Args:
        capacity: units that may be held at the same time under a key. It is asked anew whenever something is released
            or `refresh` is called.

    Example:
        slots = Slots({"node-1": 4, "node-2": 1}.__getitem__)
        async with slots.hold("node-1", 2):                    # waits for two units
            assert slots.held("node-1") == 2
        async with slots.hold_all({"node-1": 1, "node-2": 1}):  # waits for both, and has neither until then
            ...
        async with slots.hold_any(["node-1", "node-2"]) as hold:  # one unit where most are free
            print(hold.key)
    """

    def __init__(self, capacity: Callable[[K], int]):
        self.capacity = capacity
        self._held: Counter[K] = Counter()
        self._waiting: deque[Hold[K]] = deque()

    def hold(self, key: K, units: int = 1) -> "Hold[K]":
        """Request `units` of one key."""
        return Hold(self, [Counter({key: units})])

    def hold_all(self, units: Mapping[K, int]) -> "Hold[K]":
        """Request units of several keys, all of them or none."""
        return Hold(self, [Counter(units)])

    def hold_any(self, keys: Iterable[K]) -> "Hold[K]":
        """Request one unit of the key that has most free, the first of several."""
        return Hold(self, [Counter({key: 1}) for key in keys])

    def held(self, key: K) -> int:
        """Count the units held now under a key."""
        return self._held[key]

    def refresh(self) -> None:
        """Let in what fits now; to be called when a capacity has grown."""
        blocked: set[K] = set()
        for hold in list(self._waiting):
            if hold.granted.done():  # cancelled: its task will leave the queue when it runs
                continue
            fitting = [units for units in hold.choices if blocked.isdisjoint(units) and self._free(units) >= 0]
            if fitting:
                self._waiting.remove(hold)
                self._grant(hold, max(fitting, key=self._free))
            else:
                blocked.update(*hold.choices)

    def _free(self, units: Counter[K]) -> int:
        """Return units that the scarcest of these keys has left once they are held; negative where they do not fit."""
        return min((self.capacity(key) - self._held[key] - count for key, count in units.items()), default=0)

    def _grant(self, hold: "Hold[K]", units: Counter[K]) -> None:
        self._held += units
        hold.units = units
        hold.granted.set_result(None)


class Hold(Generic[K]):
    """A request for slots: created -> waiting -> held -> released, and again from waiting.

    `async with` acquires on entry and releases on exit what is held then; in between it may be given up and taken back.
    """

    def __init__(self, slots: Slots[K], choices: list[Counter[K]]):
        self.slots, self.choices = slots, choices
        self.units: Counter[K] | None = None
        """Units held by key; None while nothing is held."""
        self.granted: asyncio.Future[None]

    @property
    def is_held(self) -> bool:
        """True while the slots are held."""
        return self.units is not None

    @property
    def key(self) -> K:
        """The key that is held.

        Raises:
            RuntimeError: nothing is held.
        """
        if self.units is None:
            raise RuntimeError("no slots are held")
        return next(iter(self.units))

    async def acquire(self) -> None:
        """Wait for the slots.

        Raises:
            RuntimeError: they are held already.
        """
        if self.units is not None:
            raise RuntimeError("the slots are held already")
        self.granted = asyncio.get_running_loop().create_future()
        self.slots._waiting.append(self)
        self.slots.refresh()
        try:
            await self.granted
        except asyncio.CancelledError:
            if self.units is not None:  # granted in the same moment
                self.release()
            else:
                self.slots._waiting.remove(self)
                self.slots.refresh()
            raise

    def release(self) -> None:
        """Give the slots back.

        Raises:
            RuntimeError: more would be released than is held.
        """
        if self.units is None:
            raise RuntimeError("no slots are held: they have been released already")
        self.slots._held -= self.units
        self.units = None
        self.slots.refresh()

    async def __aenter__(self) -> "Hold[K]":
        await self.acquire()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.units is not None:
            self.release()
