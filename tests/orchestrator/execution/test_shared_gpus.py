"""GPUs that layer trainers share, on a Ray that believes in GPUs which are not there."""

import asyncio
import contextlib
import time

import pytest
import ray
from ray import PlacementGroupID
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from layersweep.orchestrator.execution import shared_gpus
from layersweep.orchestrator.execution.ray_session import start_ray
from layersweep.orchestrator.execution.shared_gpus import SharedGpu, SharedGpuPool
from layersweep.workers.config import ActorResources

TRAINER = ActorResources(cpus=0.1, gpus=0.3)
"""Three of them and the base weights fill a GPU: (1 - 0.05) / 0.3 = 3.2."""


def probe() -> type:
    """The class of an actor that says on which GPU it is, in place of trainers and of what holds the base weights."""

    class Probe:
        def gpus(self, *_: object) -> list[int]:
            return ray.get_gpu_ids()

        load = gpus

        def alive(self) -> None:
            pass

    return Probe


@pytest.fixture(scope="module")
def two_gpus():
    """A Ray that believes in two GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES")
        start_ray(
            "local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False
        )
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def free_gpus(two_gpus, monkeypatch):
    """Every test begins with two free GPUs."""
    monkeypatch.setattr(shared_gpus, "BaseWeightsActor", probe())
    monkeypatch.setattr(shared_gpus, "CHECK_SECONDS", 0.2)
    yield
    for name in ray.util.list_named_actors():  # not through their groups, whose end leaves the names taken
        ray.kill(ray.get_actor(name))
    for group in placement_group_table():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    until = time.monotonic() + 60
    while ray.available_resources().get("GPU") != 2:
        assert time.monotonic() < until
        time.sleep(0.1)


def trainer_on(gpu: SharedGpu):
    """A trainer on a shared GPU that has a slot there."""
    options = {"num_cpus": TRAINER.cpus, "num_gpus": TRAINER.gpus, "scheduling_strategy": gpu.strategy()}
    actor = ray.remote(probe()).options(**options).remote()
    gpu.trainers.append(actor)
    return actor


@pytest.mark.slow
def test_a_pool_that_closes_gives_gpus_and_names_back():
    """The next sweep on the same Ray gets both GPUs, and the actors' names, at once."""

    async def scenario() -> None:
        for _ in range(2):
            pool = await SharedGpuPool.create((1.0, 1.0), (1.0,), TRAINER, None, "float32")
            assert {ray.get(gpu.base_weights)[0] for gpu in pool.gpus[:2]} == {0, 1}
            pool.close()
            until = time.monotonic() + 60
            while ray.available_resources().get("GPU") != 2 or ray.util.list_named_actors():
                assert time.monotonic() < until
                await asyncio.sleep(0.1)

    asyncio.run(scenario())


@pytest.mark.slow
def test_trainers_share_a_gpu():
    """Six trainers hold two GPUs, three on each; the seventh waits until one is released."""

    async def scenario() -> None:
        pool = await SharedGpuPool.create((1.0, 1.0), (), TRAINER, None, "float32")
        assert [gpu.capacity for gpu in pool.gpus] == [3, 3]
        held = [contextlib.AsyncExitStack() for _ in range(7)]
        gpus = [await hold.enter_async_context(pool.hold()) for hold in held[:6]]
        where = [await trainer_on(gpu).gpus.remote() for gpu in gpus]
        for gpu in pool.gpus:
            assert len({tuple(ids) for ids, at in zip(where, gpus, strict=True) if at is gpu}) == 1
        assert sorted(ids[0] for ids in where) == [0, 0, 0, 1, 1, 1]
        late = asyncio.create_task(held[6].enter_async_context(pool.hold()))
        await asyncio.sleep(0.05)
        assert not late.done()
        await held[4].aclose()
        assert await asyncio.wait_for(late, 20) is gpus[4]

    asyncio.run(scenario())


@pytest.mark.slow
def test_all_actors_on_one_gpu():
    """Engine 0.3, a shared 0.3 with one trainer of 0.25, full 0.4: what gpu_allocation puts on one GPU, Ray does."""

    async def scenario() -> None:
        actor = ray.remote(probe())
        taken = actor.options(num_cpus=0.1, num_gpus=1).remote()
        (other,) = await taken.gpus.remote()
        engine = actor.options(num_cpus=0.1, num_gpus=0.3).remote()
        shared = SharedGpu(0.3, ActorResources(cpus=0.1, gpus=0.25))
        shared.reserve()
        await asyncio.wait_for(shared.load(None, "float32", "base"), 20)
        layer = actor.options(num_cpus=0.1, num_gpus=0.25, scheduling_strategy=shared.strategy()).remote()
        full = actor.options(num_cpus=0.1, num_gpus=0.4).remote()
        asked = asyncio.gather(shared.base_weights, *(probe.gpus.remote() for probe in (engine, layer, full)))
        assert await asyncio.wait_for(asked, 20) == [[1 - other]] * 4

    asyncio.run(scenario())


@pytest.mark.slow
def test_base_weights_that_are_lost_are_loaded_again():
    """Trainers that have mapped them are ended, so that their runs start others; a run that asks before the loss is
    noticed fails once, waits, and has a place as soon as the weights are there."""

    async def scenario() -> None:
        pool, said = await SharedGpuPool.create((1.0,), (), TRAINER, None, "float32"), []
        (gpu,) = pool.gpus
        async with pool.hold():
            trainer, first = trainer_on(gpu), gpu.base_weights
            await trainer.alive.remote()
            ray.kill(gpu._actor)
            with pytest.raises(ray.exceptions.RayActorError):  # not at once
                while True:
                    await gpu.check()
            with pytest.raises(ray.exceptions.RayActorError):
                async with pool.hold():
                    pass
            late = asyncio.create_task(contextlib.AsyncExitStack().enter_async_context(pool.hold()))
            await asyncio.sleep(0.5)
            assert not late.done() and gpu.capacity == 0
            with pytest.raises(ray.exceptions.RayActorError):
                await trainer.alive.remote()
            keeping = asyncio.create_task(pool.run(said.append))
            assert await asyncio.wait_for(late, 30) is gpu
            assert ray.get_actor("BaseWeightsActor-0-again-1")
            assert gpu.capacity == 3 and gpu.base_weights != first and len(await gpu.base_weights) == 1
            assert [text.partition(":")[0] for text in said] == ["BaseWeightsActor-0"]
            keeping.cancel()

    asyncio.run(scenario())


@pytest.mark.slow
def test_gpus_of_whole_model_runs_join():
    """A whole-model trainer has the second GPU. Three layer trainers fill the first, and the fourth waits until the
    other has ended and its GPU has joined."""

    async def scenario() -> None:
        whole = ray.remote(probe()).options(num_cpus=0.1, num_gpus=1).remote()
        (other,) = await whole.gpus.remote()
        pool, said = await SharedGpuPool.create((1.0,), (1.0,), TRAINER, None, "float32"), []
        keeping = asyncio.create_task(pool.run(said.append))
        held = [contextlib.AsyncExitStack() for _ in range(4)]
        gpus = [await hold.enter_async_context(pool.hold()) for hold in held[:3]]
        late = asyncio.create_task(held[3].enter_async_context(pool.hold()))
        pool.join()
        await asyncio.sleep(1)
        assert not late.done() and not said
        ray.kill(whole)
        joined = await asyncio.wait_for(late, 30)
        assert joined is not gpus[0] and await trainer_on(joined).gpus.remote() == [other]
        assert said == ["a GPU of the whole-model runs takes layer runs from now on"]
        keeping.cancel()

    asyncio.run(scenario())
