"""The simulation of a large sweep, at a size that can be followed by hand."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from tests.simulations import stand_ins
from tests.simulations.driver_scale import Outcome, simulate, study
from tests.simulations.stand_ins import CollectorCost, Durations, World
from tests.simulations.virtual_time import Server, VirtualLoop

FREE = CollectorCost(step=0, commit_row=0, scores=0, responses=1, write_row=0, write_response=0)
TIMES = Durations(
    rollout=10,
    evaluation=40,
    update=lambda selection: 64 if selection.trains_all else 20,
    push=1,
    checkpoint=0,
    start=5,
)


def sweep(folder, cost: CollectorCost = FREE, **changes) -> Outcome:
    """Two steps on 16 GPUs, the driver itself taking no time."""
    plan = study(str(folder), 1, 2, recovery={"patience": 1e6}, **changes)
    return simulate(plan, World(16, TIMES, cost), worked=lambda world: 0.0)


def test_the_clock_counts_waiting_and_servers_take_turns():
    async def three() -> list[float]:
        server, loop = Server(), asyncio.get_running_loop()

        async def one(after: float) -> float:
            await asyncio.sleep(after)
            await server.serve(100.0)
            return loop.time()

        return await asyncio.gather(one(0), one(30), one(500))

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner:
        assert runner.run(three()) == pytest.approx([100, 200, 600])


def test_a_wait_for_nothing_is_noticed():
    async def forever() -> None:
        await asyncio.Event().wait()

    with (
        pytest.raises(RuntimeError, match="for nothing that will come"),
        asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner,
    ):
        runner.run(forever())


def test_three_runs_and_one_engine(tmp_path):
    """The engine generates the shared first rollout 0-10 while trainers start, then scores the base 10-50. First
    updates of layers end at 30, of full on 4 GPUs at 26, pushes a second later; so from 50 on the engine generates for
    full 50-60, for the layers 60-70 and 70-80. Full has its second update and push at 77, the layers at 91 and 101;
    scores are 80-120, 120-160 and 160-200. Layer trainers have 16 - 1 - 4 = 11 GPUs, of which two work 40 s."""
    seen = sweep(tmp_path, layers=2, resources={"engines": 1})
    assert seen.ends == Counter(completed=4)  # with the base
    assert seen.seconds == pytest.approx(200)
    assert seen.engines_busy == pytest.approx(1)
    assert seen.trainers_busy == pytest.approx(2 * 40 / 11 / 200)
    assert seen.calls["rollout"] == 4 and seen.calls["update"] == 2 * (4 + 1 + 1) and seen.calls["push"] == 6
    assert seen.events == 6 + 4 + 3  # steps, evaluations, checkpoints
    assert seen.collector_wait == 0 and seen.replaced == seen.restarts == 0


def test_gpus_of_the_full_run_train_layers_after_it(tmp_path):
    """With an engine that takes no time, full's 8 updates of 64 s on 4 GPUs end at 128, seen at 200. Until then 11 GPUs
    train 22 layer runs beside full, and 15 GPUs train 30 from then on. Of 36 x 8 updates of 20 s 110 are done at 200,
    and the other 178 take 15 GPUs another 240 s at least; 11 GPUs alone would need 524 s for all."""
    plan = study(str(tmp_path), 1, 8, layers=36, resources={"engines": 1}, recovery={"patience": 1e6})
    world = World(16, replace(TIMES, rollout=0, evaluation=0, push=0, start=0), FREE)
    seen = simulate(plan, world, worked=lambda world: 0.0)
    assert seen.ends == Counter(completed=38)
    assert world.joined == [200] * 4 and world.most_runs == 30
    assert 440 <= seen.seconds < 524


def test_a_driver_that_is_too_slow_makes_the_sweep_longer(tmp_path):
    """At 10 s a call, of which there are more than 50, most of them one after the other."""
    plan = study(str(tmp_path), 1, 2, layers=2, resources={"engines": 1}, recovery={"patience": 1e6})
    seen = simulate(plan, World(16, TIMES, FREE), worked=lambda world: 10.0 * world.calls.total())
    assert seen.ends == Counter(completed=4)
    assert seen.seconds > 10 * 50


def test_the_collector_does_one_thing_after_the_other(tmp_path):
    """A second for each of 6 rows and 4 evaluations."""
    seen = sweep(tmp_path, replace(FREE, step=1.0, scores=1.0), layers=2, resources={"engines": 1})
    assert seen.collector_busy * seen.seconds == pytest.approx(10)


def test_engines_sleep_while_runs_train(tmp_path, monkeypatch):
    """The real driver: no call to an engine that is asleep, no update beside one that is awake, and as few switches as
    steps: all runs have generated when the first of them trains."""
    asleep, switches = [False], []

    async def turn(self, to: bool) -> None:
        asleep[0] = to
        switches.append(to)

    def only(cls: type, name: str, while_asleep: bool) -> None:
        method = getattr(cls, name)

        async def checked(self, *args):
            assert asleep[0] is while_asleep
            answer = await method(self, *args)
            assert asleep[0] is while_asleep
            return answer

        monkeypatch.setattr(cls, name, checked)

    monkeypatch.setattr(stand_ins.Engine, "do_sleep", lambda self: turn(self, True), raising=False)
    monkeypatch.setattr(stand_ins.Engine, "do_wake", lambda self: turn(self, False), raising=False)
    only(stand_ins.RolloutWorker, "do_rollout", False)
    only(stand_ins.RolloutWorker, "do_evaluation", False)
    only(stand_ins.Trainer, "do_update", True)
    seen = sweep(
        tmp_path, layers=2, rollout={"sleep": True},
        resources={"engines": 1, "engine": {"gpus": 0.5}, "full_trainer_ranks": 1, "full_trainer": {"gpus": 1}},
    )  # fmt: skip
    assert seen.ends == Counter(completed=4)
    assert switches == [True, False] * 2
