"""Health checks and engine slots, on the virtual clock. The timeout is 40 s: a check every 10."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace

import pytest
import ray

from layersweep.orchestrator.execution import health
from layersweep.orchestrator.execution.engine_slot import EngineSlot
from layersweep.orchestrator.execution.failures import RayLost
from layersweep.orchestrator.execution.health import HealthMonitor
from tests.simulations.virtual_time import VirtualLoop

TIMEOUT, FOREVER = 40.0, 1e9


class Engine:
    """An engine client; `answer` is what a health check gets."""

    def __init__(self, name: str, answer: Callable[[], Coroutine] | None = None):
        self.name, self.answer, self.killed, self.checks = name, answer, 0, 0

    async def stuck_for(self) -> float:
        self.checks += 1
        return await self.answer() if self.answer else 0.0

    def kill(self) -> None:
        self.killed += 1


def slot_of(engine: Engine, start=None) -> tuple[EngineSlot, list[Engine]]:
    """A slot, and the replacements that it creates."""
    created = []

    def create(name: str) -> Engine:
        created.append(Engine(name))
        return created[-1]

    async def at_once(engine: Engine) -> None:
        pass

    return EngineSlot("Engine-0", engine, create, start or at_once), created


@pytest.fixture
def nodes(monkeypatch) -> list[dict]:
    """What Ray says of its nodes; this one is `here`."""
    found = [{"NodeID": "here", "Alive": True}, {"NodeID": "there", "Alive": True}]
    context = SimpleNamespace(get_node_id=lambda: "here")
    fake = SimpleNamespace(exceptions=ray.exceptions, nodes=lambda: found, get_runtime_context=lambda: context)
    monkeypatch.setattr(health, "ray", fake)
    return found


def watch(slots, seconds: float, restartable=None, during: Callable[[], Coroutine] | None = None) -> list[str]:
    """What a monitor says within so many seconds of the virtual clock."""

    async def scene() -> None:
        async with asyncio.TaskGroup() as tasks:
            monitor = tasks.create_task(HealthMonitor(slots, restartable or {}, TIMEOUT, said.append).run())
            if during:
                await during()
            await asyncio.sleep(seconds)
            monitor.cancel()

    said: list[str] = []
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner:
        runner.run(scene())
    return said


async def raises() -> float:
    raise ray.exceptions.ActorDiedError()


async def hangs() -> float:
    await asyncio.sleep(FOREVER)


def stuck(seconds: float):
    async def answer() -> float:
        return seconds

    return answer


def test_an_engine_that_works_is_left_alone(nodes):
    """Checks at 10, 20, ... 100; a long step is not a stuck engine."""
    engine = Engine("Engine-0", stuck(39.9))
    slot, created = slot_of(engine)
    assert watch([slot], 105) == [] and engine.checks == 10 and not created


@pytest.mark.parametrize(
    ("answer", "seconds", "said"),
    [
        (raises, 10.5, "Engine-0 ActorDiedError: The actor died unexpectedly before finishing this task.: starting"),
        (stuck(40.0), 10.5, "Engine-0 has work and finished no step of it for 40 s: starting another"),
        (hangs, 50.5, "Engine-0 does not answer for 40 s: starting another"),
    ],
)
def test_an_engine_that_is_dead_stuck_or_silent_is_replaced(nodes, answer, seconds, said):
    """The first check is at 10 s; silence is known 40 s later."""
    engine = Engine("Engine-0", answer)
    slot, created = slot_of(engine)
    heard = watch([slot], seconds)
    assert len(heard) == 1 and heard[0].startswith(said)
    assert engine.killed == 1 and [new.name for new in created] == ["Engine-0-again-1"]
    assert slot.engine is created[0] and slot.generation == 1
    assert watch([slot_of(Engine("Engine-0", answer))[0]], seconds - 1) == []


def test_an_engine_that_starts_is_not_asked(nodes):
    """Loading a model takes longer than the timeout, and an engine answers nothing before it is done."""
    engine = Engine("Engine-0", hangs)

    async def slowly(engine: Engine) -> None:
        await asyncio.sleep(95)
        engine.answer = None

    slot, created = slot_of(engine, slowly)
    assert watch([slot], 10, during=slot.start) == [] and engine.checks == 1 and not created


def test_a_replacement_that_does_not_start_is_tried_again_at_the_next_check(nodes):
    starts = []

    async def second(engine: Engine) -> None:
        starts.append(engine)
        if len(starts) == 1:
            raise ray.exceptions.ActorDiedError()

    engine = Engine("Engine-0", raises)
    slot, created = slot_of(engine, second)
    said = watch([slot], 25)
    assert [line.split(" ")[1] for line in said] == ["ActorDiedError:", "did", "ActorDiedError:"]
    assert [new.name for new in created] == ["Engine-0-again-1", "Engine-0-again-2"]
    assert created[0].killed == 1 and slot.engine is created[1] and slot.generation == 1


def test_a_slot_is_filled_once_however_many_ask():
    """Three runs see generation 0 fail; a fourth, which saw generation 1, has it replaced again."""

    async def scene() -> None:
        first = Engine("Engine-0")
        slot, created = slot_of(first)
        await asyncio.gather(*(slot.replace(0) for _ in range(3)))
        assert len(created) == 1 and slot.generation == 1 and first.killed == 1
        await slot.replace(1)
        assert len(created) == 2 and slot.generation == 2 and slot.engine is created[1]

    asyncio.run(scene())


def test_no_call_reaches_an_engine_before_it_has_started():
    async def scene() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def slowly(engine: Engine) -> None:
            begun.set()
            await go.wait()

        first = Engine("Engine-0")
        slot, created = slot_of(first, slowly)
        replacing = asyncio.create_task(slot.replace(0))
        stable = asyncio.create_task(slot.wait_until_stable())
        await begun.wait()
        assert slot.engine is first and slot.generation == 0 and not stable.done()
        go.set()
        await asyncio.gather(replacing, stable)
        assert slot.engine is created[0] and slot.generation == 1

    asyncio.run(scene())


class Restartable:
    """A client of the collector or the rollout worker."""

    def __init__(self, answer):
        self.answer, self.restarts = answer, 0

    async def alive(self) -> None:
        await self.answer()

    def restart(self) -> None:
        self.restarts += 1


@pytest.mark.parametrize(
    ("answer", "seconds", "restarts"),
    [(stuck(0), 200, 0), (raises, 200, 0), (hangs, 49, 0), (hangs, 51, 1), (hangs, 101, 2)],
)
def test_a_support_actor_that_is_silent_is_restarted(nodes, answer, seconds, restarts):
    """Asked at 10, silent until 50; again at 60, until 100. One that is dead Ray restarts by itself."""
    actor = Restartable(answer)
    said = watch([], seconds, {"the collector": actor})
    assert (
        actor.restarts == restarts and said == ["the collector does not answer for 40 s: starting it again"] * restarts
    )


@pytest.mark.parametrize("gone", ["dead", "missing"])
def test_the_end_of_ray_on_this_node_ends_the_sweep(nodes, gone):
    """Another node's end does not."""
    nodes[1]["Alive"] = False
    assert watch([], 100) == []
    if gone == "dead":
        nodes[0]["Alive"] = False
    else:
        del nodes[0]
    with pytest.raises(BaseExceptionGroup) as error:
        watch([], 100)
    assert isinstance(error.value.exceptions[0], RayLost)
