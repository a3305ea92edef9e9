"""Turns of updates on the CPUs of a node: schedules worked out by hand, on a clock whose waiting takes no time."""

import asyncio
from collections.abc import Coroutine

import pytest

from layersweep.orchestrator.execution.update_slots import UpdateSlots
from tests.simulations.virtual_time import VirtualLoop


def schedule(places: dict[str, int], jobs: list[tuple[str, list[str], int]]) -> list[tuple[str, float, float]]:
    """Jobs (name, nodes, seconds), all asked for at once in this order; name, begin and end of each, in order of their
    ends. Fails where everybody waits."""
    done = []

    async def job(turns: UpdateSlots, name: str, nodes: list[str], seconds: int) -> None:
        clock = asyncio.get_running_loop().time
        async with turns.of(nodes):
            began = clock()
            await asyncio.sleep(seconds)
            done.append((name, began, clock()))

    async def everybody() -> None:
        turns = UpdateSlots(places.__getitem__)
        await asyncio.gather(*(job(turns, *spec) for spec in jobs))
        assert not turns.taken

    simulated(everybody())
    return done


def simulated(scene: Coroutine) -> None:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner:
        runner.run(scene)


def test_as_many_at_once_as_there_are_cpus_in_the_order_asked():
    """Two CPUs: a (4 ticks) and b (2) begin; c follows b at 2 and ends at 5; d follows a at 4."""
    jobs = [("a", ["n"], 4), ("b", ["n"], 2), ("c", ["n"], 3), ("d", ["n"], 3)]
    assert schedule({"n": 2}, jobs) == [("b", 0, 2), ("a", 0, 4), ("c", 2, 5), ("d", 4, 7)]


def test_a_crew_of_two_is_not_passed_by_single_ranks():
    """Two CPUs: a ends at 4, b at 2; the pair needs both and has them at 4; c could have gone at 2, and goes at 6."""
    jobs = [("a", ["n"], 4), ("b", ["n"], 2), ("pair", ["n", "n"], 2), ("c", ["n"], 1)]
    assert schedule({"n": 2}, jobs) == [("b", 0, 2), ("a", 0, 4), ("pair", 4, 6), ("c", 6, 7)]


def test_nodes_do_not_wait_for_each_other():
    jobs = [("a", ["m"], 4), ("b", ["m"], 1), ("c", ["n"], 2)]
    assert schedule({"m": 1, "n": 1}, jobs) == [("c", 0, 2), ("a", 0, 4), ("b", 4, 5)]


def test_crews_across_nodes_in_opposite_order_do_not_deadlock():
    jobs = [("a", ["m", "n"], 2), ("b", ["n", "m"], 2), ("c", ["n"], 1)]
    assert schedule({"m": 1, "n": 1}, jobs) == [("a", 0, 2), ("b", 2, 4), ("c", 4, 5)]


def test_a_crew_larger_than_its_node_gets_it_for_itself():
    jobs = [("a", ["n"], 2), ("three", ["n"] * 3, 2), ("b", ["n"], 1)]
    assert schedule({"n": 2}, jobs) == [("a", 0, 2), ("three", 2, 4), ("b", 4, 5)]


def test_no_nodes_no_waiting():
    """On GPUs."""
    assert schedule({}, [("a", [], 2), ("b", [], 1)]) == [("b", 0, 1), ("a", 0, 2)]


def test_a_failed_update_and_a_cancelled_wait_give_their_turns_back():
    async def scene() -> None:
        turns = UpdateSlots(lambda node: 1)
        with pytest.raises(ZeroDivisionError):
            async with turns.of(["n"]):
                raise ZeroDivisionError
        async with turns.of(["n"]):
            waiting = asyncio.create_task(_enter(turns))
            await asyncio.sleep(1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with turns.of(["n"]):
            pass

    simulated(scene())


async def _enter(turns: UpdateSlots) -> None:
    async with turns.of(["n"]):
        pass
