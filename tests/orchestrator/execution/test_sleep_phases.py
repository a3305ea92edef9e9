"""Writing and training by turns: who works when, derived by hand."""

import asyncio

import pytest

from layersweep.orchestrator.execution.sleep_phases import SleepPhases


class Scene:
    """Workers who enter a phase when they come, and leave it when told; what happened, in order."""

    def __init__(self, switch=None):
        self.seen: list[str] = []
        self.phases = SleepPhases(switch or self._switch)
        self.tasks: dict[str, asyncio.Task] = {}
        self.ends: dict[str, asyncio.Event] = {}

    async def _switch(self, kind: str) -> None:
        self.seen.append(f"to {kind}")

    async def come(self, name: str) -> None:
        """`w...` writes, `t...` trains."""
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(name))
        await settled()

    async def _work(self, name: str) -> None:
        async with self.phases.of("writing" if name[0] == "w" else "training"):
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


def test_writers_share_a_phase_and_trainers_wait_for_all_of_them():
    async def scene() -> list[str]:
        s = Scene()
        for name in ("w1", "w2", "t1", "t2"):
            await s.come(name)
        await s.go("w1")
        await s.go("w2")
        await s.go("t1", "t2")
        return s.seen

    assert asyncio.run(scene()) == [
        "w1 begins", "w2 begins", "w1 ends", "w2 ends", "to training", "t1 begins", "t2 begins", "t1 ends", "t2 ends",
    ]  # fmt: skip


def test_nobody_joins_a_phase_that_others_wait_to_end():
    """w2 comes after t1 and writes after it: a stream of writers cannot keep a trainer waiting, nor the reverse."""

    async def scene() -> list[str]:
        s = Scene()
        for name in ("w1", "t1", "w2"):
            await s.come(name)
        await s.go("w1")
        await s.come("t2")
        await s.go("t1")
        await s.go("w2")
        await s.go("t2")
        return s.seen

    assert asyncio.run(scene()) == [
        "w1 begins", "w1 ends", "to training", "t1 begins", "t1 ends", "to writing", "w2 begins", "w2 ends",
        "to training", "t2 begins", "t2 ends",
    ]  # fmt: skip


def test_a_phase_is_joined_while_nobody_waits_and_kept_while_nobody_asks():
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


def test_who_gives_up_waiting_keeps_nobody_from_the_phase():
    async def scene() -> list[str]:
        s = Scene()
        for name in ("w1", "t1", "w2"):
            await s.come(name)
        s.tasks["t1"].cancel()
        await settled()
        await s.go("w2")
        await s.go("w1")
        assert s.phases.working == 0
        return s.seen

    assert asyncio.run(scene()) == ["w1 begins", "w2 begins", "w2 ends", "w1 ends"]


def test_who_is_cancelled_in_the_moment_of_his_phase_leaves_it():
    async def scene() -> list[str]:
        s = Scene()
        for name in ("w1", "t1", "w2"):
            await s.come(name)
        s.ends["w1"].set()
        while s.phases.phase != "training":
            await asyncio.sleep(0)
        s.tasks["t1"].cancel()
        await settled()
        await s.go("w2")
        assert s.phases.working == 0
        return s.seen

    assert asyncio.run(scene()) == ["w1 begins", "w1 ends", "to training", "to writing", "w2 begins", "w2 ends"]


def test_a_failed_switch_is_told_to_those_who_need_it_and_tried_again():
    """Both trainers get the error; the next to come has the switch made once more, also back to the kind before."""
    seen: list[str] = []

    async def switch(kind: str) -> None:
        seen.append(kind)
        if len(seen) == 1:
            raise RuntimeError("no answer")

    async def scene() -> Scene:
        s = Scene(switch)
        for name in ("w1", "t1", "t2"):
            await s.come(name)
        await s.go("w1")
        for name in ("t1", "t2"):
            with pytest.raises(RuntimeError, match="no answer"):
                await s.tasks[name]
        await s.come("w2")
        await s.go("w2")
        return s

    assert asyncio.run(scene()).seen == ["w1 begins", "w1 ends", "w2 begins", "w2 ends"]
    assert seen == ["training", "writing"]


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_runs_never_write_and_train_at_the_same_time(seed):
    """Random schedules: everybody gets through, with few more switches than phases were asked for."""
    import random

    rng, inside, switches = random.Random(seed), {"writing": 0, "training": 0}, []

    async def switch(kind: str) -> None:
        assert not any(inside.values())
        switches.append(kind)
        await asyncio.sleep(0)

    async def run(phases: SleepPhases) -> None:
        for kind in ("writing", "training") * 5:
            async with phases.of(kind):
                inside[kind] += 1
                for _ in range(rng.randrange(4)):
                    assert not (inside["writing"] and inside["training"])
                    await asyncio.sleep(0)
                inside[kind] -= 1

    async def scene() -> None:
        phases = SleepPhases(switch)
        await asyncio.wait_for(asyncio.gather(*(run(phases) for _ in range(100))), 20)

    asyncio.run(scene())
    assert all(a != b for a, b in zip(switches, switches[1:], strict=False))
    assert len(switches) <= 12  # ten phases for all together, and few more for those who came late
