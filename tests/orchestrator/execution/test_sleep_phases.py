"""Alternating phases of generation and training: which task runs when, derived by hand."""

import asyncio

import pytest

from layersweep.orchestrator.execution.sleep_phases import SleepPhases


class Scene:
    """Tasks that enter a phase when they come, and leave it when told; what happened, in order."""

    def __init__(self, switch=None):
        self.seen: list[str] = []
        self.phases = SleepPhases(switch or self._switch)
        self.tasks: dict[str, asyncio.Task] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def _switch(self, kind: str) -> None:
        self.seen.append(f"to {kind}")

    async def come(self, name: str) -> None:
        """`g...` generates, `t...` trains."""
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name))
        await settled()

    async def _work(self, name: str) -> None:
        async with self.phases.hold("generation" if name[0] == "g" else "training"):
            self.seen.append(f"{name} begins")
            await self.ends[name].wait()
            self.seen.append(f"{name} ends")

    async def go(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_rollouts_share_a_phase_and_updates_wait_for_all_of_them():
    async def scene() -> list[str]:
        s = Scene()
        for name in ("g1", "g2", "t1", "t2"):
            await s.come(name)
        await s.go("g1")
        await s.go("g2")
        await s.go("t1", "t2")
        return s.seen

    assert asyncio.run(scene()) == [
        "g1 begins", "g2 begins", "g1 ends", "g2 ends", "to training", "t1 begins", "t2 begins", "t1 ends", "t2 ends",
    ]  # fmt: skip


def test_no_task_joins_a_phase_that_others_wait_to_end():
    """g2 comes after t1 and generates after it: a stream of rollouts cannot keep an update waiting, nor the reverse."""

    async def scene() -> list[str]:
        s = Scene()
        for name in ("g1", "t1", "g2"):
            await s.come(name)
        await s.go("g1")
        await s.come("t2")
        await s.go("t1")
        await s.go("g2")
        await s.go("t2")
        return s.seen

    assert asyncio.run(scene()) == [
        "g1 begins", "g1 ends", "to training", "t1 begins", "t1 ends", "to generation", "g2 begins", "g2 ends",
        "to training", "t2 begins", "t2 ends",
    ]  # fmt: skip


def test_a_phase_is_joined_while_no_task_waits_and_kept_while_none_asks():
    async def scene() -> list[str]:
        s = Scene()
        await s.come("t1")
        await s.come("t2")
        await s.go("t1", "t2")
        await s.come("t3")
        await s.go("t3")
        return s.seen

    seen = asyncio.run(scene())
    assert seen == ["to training", "t1 begins", "t2 begins", "t1 ends", "t2 ends", "t3 begins", "t3 ends"]


def test_a_cancelled_wait_keeps_no_task_from_the_phase():
    async def scene() -> list[str]:
        s = Scene()
        for name in ("g1", "t1", "g2"):
            await s.come(name)
        s.tasks["t1"].cancel()
        await settled()
        await s.go("g2")
        await s.go("g1")
        assert s.phases.working == 0
        return s.seen

    assert asyncio.run(scene()) == ["g1 begins", "g2 begins", "g2 ends", "g1 ends"]


def test_a_task_cancelled_as_its_phase_begins_leaves_it():
    async def scene() -> list[str]:
        s = Scene()
        for name in ("g1", "t1", "g2"):
            await s.come(name)
        s.ends["g1"].set()
        while s.phases.phase != "training":
            await asyncio.sleep(0)
        s.tasks["t1"].cancel()
        await settled()
        await s.go("g2")
        assert s.phases.working == 0
        return s.seen

    assert asyncio.run(scene()) == ["g1 begins", "g1 ends", "to training", "to generation", "g2 begins", "g2 ends"]


def test_a_failed_switch_is_raised_to_its_waiters_and_tried_again():
    """Both updates get the error; the next to come has the switch made once more, also back to the kind before."""
    seen: list[str] = []

    async def switch(kind: str) -> None:
        seen.append(kind)
        if len(seen) == 1:
            raise RuntimeError("no answer")

    async def scene() -> Scene:
        s = Scene(switch)
        for name in ("g1", "t1", "t2"):
            await s.come(name)
        await s.go("g1")
        for name in ("t1", "t2"):
            with pytest.raises(RuntimeError, match="no answer"):
                await s.tasks[name]
        await s.come("g2")
        await s.go("g2")
        return s

    assert asyncio.run(scene()).seen == ["g1 begins", "g1 ends", "g2 begins", "g2 ends"]
    assert seen == ["training", "generation"]


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_runs_never_generate_and_train_at_the_same_time(seed):
    """Random schedules: every task gets through, with few more switches than phases were asked for."""
    import random

    rng, inside, switches = random.Random(seed), {"generation": 0, "training": 0}, []

    async def switch(kind: str) -> None:
        assert not any(inside.values())
        switches.append(kind)
        await asyncio.sleep(0)

    async def run(phases: SleepPhases) -> None:
        for kind in ("generation", "training") * 5:
            async with phases.hold(kind):
                inside[kind] += 1
                for _ in range(rng.randrange(4)):
                    assert not (inside["generation"] and inside["training"])
                    await asyncio.sleep(0)
                inside[kind] -= 1

    async def scene() -> None:
        phases = SleepPhases(switch)
        await asyncio.wait_for(asyncio.gather(*(run(phases) for _ in range(100))), 20)

    asyncio.run(scene())
    assert all(a != b for a, b in zip(switches, switches[1:], strict=False))
    assert len(switches) <= 12  # ten phases for all together, and few more for late ones
