"""Slots: schedules worked out by hand, on a clock whose waiting takes no time."""

import asyncio
from collections import Counter
from collections.abc import Coroutine

import pytest

from layersweep.orchestrator.execution.slots import Slots
from tests.simulations.virtual_time import VirtualLoop


def schedule(capacity: dict[str, int], jobs: list[tuple[str, list[str], int]]) -> list[tuple[str, float, float]]:
    """Jobs (name, a key for each unit, seconds), all asked for at once in this order; name, begin and end of each, in
    order of their ends. Fails where every job waits."""
    done = []

    async def job(slots: Slots, name: str, keys: list[str], seconds: int) -> None:
        clock = asyncio.get_running_loop().time
        async with slots.hold_all(Counter(keys)):
            began = clock()
            await asyncio.sleep(seconds)
            done.append((name, began, clock()))

    async def all_jobs() -> None:
        slots = Slots(capacity.__getitem__)
        await asyncio.gather(*(job(slots, *spec) for spec in jobs))
        assert not any(slots.held(key) for key in capacity)

    simulated(all_jobs())
    return done


def simulated(scene: Coroutine) -> None:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner:
        runner.run(scene)


def test_as_many_at_once_as_there_are_units_in_the_order_asked():
    """Two units: a (4 ticks) and b (2) begin; c follows b at 2 and ends at 5; d follows a at 4."""
    jobs = [("a", ["n"], 4), ("b", ["n"], 2), ("c", ["n"], 3), ("d", ["n"], 3)]
    assert schedule({"n": 2}, jobs) == [("b", 0, 2), ("a", 0, 4), ("c", 2, 5), ("d", 4, 7)]


def test_a_large_request_is_not_overtaken_by_small_ones():
    """Two units: a ends at 4, b at 2; the pair needs both and has them at 4; c could have begun at 2, and does at 6."""
    jobs = [("a", ["n"], 4), ("b", ["n"], 2), ("pair", ["n", "n"], 2), ("c", ["n"], 1)]
    assert schedule({"n": 2}, jobs) == [("b", 0, 2), ("a", 0, 4), ("pair", 4, 6), ("c", 6, 7)]


def test_keys_do_not_wait_for_each_other():
    jobs = [("a", ["m"], 4), ("b", ["m"], 1), ("c", ["n"], 2)]
    assert schedule({"m": 1, "n": 1}, jobs) == [("c", 0, 2), ("a", 0, 4), ("b", 4, 5)]


def test_requests_for_two_keys_in_opposite_order_do_not_deadlock():
    jobs = [("a", ["m", "n"], 2), ("b", ["n", "m"], 2), ("c", ["n"], 1)]
    assert schedule({"m": 1, "n": 1}, jobs) == [("a", 0, 2), ("b", 2, 4), ("c", 4, 5)]


def test_a_request_for_nothing_does_not_wait():
    """Updates on GPUs."""
    assert schedule({}, [("a", [], 2), ("b", [], 1)]) == [("b", 0, 1), ("a", 0, 2)]


def test_capacity_grows_and_shrinks_and_nothing_is_revoked():
    """One of three may be held: a. With two, b begins too. With one again, c waits for both to be released."""

    async def scene() -> None:
        limit = 1
        slots = Slots(lambda key: limit)
        a, b, c = (slots.hold("runs") for _ in range(3))
        tasks = [asyncio.create_task(hold.acquire()) for hold in (a, b, c)]
        await asyncio.sleep(1)
        assert [hold.is_held for hold in (a, b, c)] == [True, False, False]
        limit = 2
        slots.refresh()
        assert [hold.is_held for hold in (a, b, c)] == [True, True, False] and slots.held("runs") == 2
        limit = 1
        a.release()
        assert not c.is_held and slots.held("runs") == 1
        b.release()
        assert c.is_held and slots.held("runs") == 1
        await asyncio.gather(*tasks)

    simulated(scene())


def test_any_takes_the_emptiest_and_waits_where_all_are_full():
    """Room for 2 and 1: the first two go to gpu 0 and, as both have one left, to gpu 0 again; the third to gpu 1."""

    async def scene() -> None:
        slots = Slots([2, 1].__getitem__)
        holds = [slots.hold_any([0, 1]) for _ in range(4)]
        for hold in holds[:3]:
            await hold.acquire()
        assert [hold.key for hold in holds[:3]] == [0, 0, 1]
        waiting = asyncio.create_task(holds[3].acquire())
        await asyncio.sleep(1)
        assert not holds[3].is_held
        holds[2].release()
        await waiting
        assert holds[3].key == 1

    simulated(scene())


def test_more_cannot_be_released_than_is_held():
    async def scene() -> None:
        slots = Slots(lambda key: 1)
        hold = slots.hold("runs")
        with pytest.raises(RuntimeError, match="no slots are held"):
            hold.release()
        with pytest.raises(RuntimeError, match="no slots are held"):
            _ = hold.key
        await hold.acquire()
        with pytest.raises(RuntimeError, match="held already"):
            await hold.acquire()
        hold.release()
        with pytest.raises(RuntimeError, match="released already"):
            hold.release()
        assert slots.held("runs") == 0

    simulated(scene())


def test_what_was_given_up_within_the_block_is_not_released_again():
    """A run that is paused at a rung gives its slot up; if it fails or is cancelled there, another run has it."""

    async def scene() -> None:
        slots = Slots(lambda key: 1)
        other = slots.hold("runs")
        with pytest.raises(ZeroDivisionError):
            async with slots.hold("runs") as hold:
                hold.release()
                await other.acquire()
                raise ZeroDivisionError
        assert slots.held("runs") == 1 and other.is_held

    simulated(scene())


def test_an_error_and_a_cancelled_wait_give_slots_back():
    async def scene() -> None:
        slots = Slots(lambda key: 1)
        with pytest.raises(ZeroDivisionError):
            async with slots.hold("n"):
                raise ZeroDivisionError
        async with slots.hold("n"):
            waiting = asyncio.create_task(_enter(slots))
            await asyncio.sleep(1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with slots.hold("n"):
            pass

    simulated(scene())


def test_a_wait_that_is_cancelled_as_it_is_granted_gives_the_slot_back():
    async def scene() -> None:
        slots = Slots(lambda key: 1)
        first = slots.hold("n")
        await first.acquire()
        waiting = asyncio.create_task(_enter(slots))
        await asyncio.sleep(1)
        first.release()  # grants it, before the task can see it
        assert slots.held("n") == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert slots.held("n") == 0

    simulated(scene())


async def _enter(slots: Slots) -> None:
    async with slots.hold("n"):
        pass


def test_waiting_tasks_that_are_cancelled_together_take_nothing():
    """A stop cancels them all: B in the moment in which A's slot is granted to it, C while it waits behind B."""

    async def stop() -> int:
        slots: Slots[str] = Slots(lambda key: 1)
        first = slots.hold("runs")
        await first.acquire()
        tasks = [asyncio.create_task(slots.hold("runs").acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        first.release()
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
        async with slots.hold("runs"):
            return slots.held("runs")

    assert asyncio.run(stop()) == 1
