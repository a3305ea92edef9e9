"""GPUs that several layer trainers share, around one copy of the base model."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from layersweep.workers.actors.base_weights import BaseWeightsActor
from layersweep.workers.actors.gpu_share import BASE_WEIGHTS_CPUS, BASE_WEIGHTS_SHARE, shared_gpu_cpus, trainers_per_gpu
from layersweep.workers.actors.ray_placement import bundle_of
from layersweep.workers.config import ActorResources
from layersweep.workers.startup.model_source import ModelSource

from .failures import reason_of
from .slots import Slots

CHECK_SECONDS = 5.0
"""Seconds between checks of the actor that holds a GPU's base weights."""
LOST = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError)


class SharedGpu:
    """One GPU, or a part of it, shared by several trainers.

    On it an actor holds the base weights and hands out CUDA IPC handles; each trainer takes its fraction of the GPU and
    maps that memory.

    Args:
        share: of the GPU, for the base weights and all trainers.
        trainer: what one trainer asks for; its gpus are a fraction.
    """

    def __init__(self, share: float, trainer: ActorResources):
        self.share, self.trainer = share, trainer
        self.base_weights: Any = None
        """Reference to what Trunk.attach needs; None while there is none."""
        self.trainers: list[Any] = []
        """Actors that have mapped the base weights, or will."""
        self.loads = 0
        """Times that the base has been loaded."""
        self._group: PlacementGroup | None = None
        self._actor: Any = None  # the base weights live as long as this handle

    @property
    def capacity(self) -> int:
        """Trainers that fit now."""
        return 0 if self.base_weights is None else trainers_per_gpu(self.share, self.trainer.gpus)

    def reserve(self) -> None:
        """Ask Ray for the GPU."""
        self._group = placement_group([gpu_bundle(self.share, self.trainer)], strategy="PACK")

    async def load(self, model: ModelSource, dtype: str, name: str) -> None:
        """Have the base loaded, once Ray has given the GPU and its node is there.

        Args:
            name: of the first actor that holds it; others are called name-again-1, ...
        """
        await self._group.ready()
        while not await asyncio.to_thread(self._is_placed):
            await asyncio.sleep(1)
        if self.loads:  # Ray gives a name free some time after its actor's end
            name += f"-again-{self.loads}"
        self.loads += 1
        options = {"name": name, "num_gpus": BASE_WEIGHTS_SHARE, "num_cpus": BASE_WEIGHTS_CPUS,
                   "scheduling_strategy": self.strategy()}  # fmt: skip
        self._actor = ray.remote(BaseWeightsActor).options(**options).remote()
        self.base_weights = self._actor.load.remote(model, dtype)

    async def check(self) -> None:
        """Wait for an answer of the actor that holds the base weights.

        Raises:
            ray.exceptions.RayActorError: it has ended, and with it what its trainers have mapped.
        """
        await self._actor.alive.remote()

    def give_up(self) -> None:
        """Let no trainer in, and end those that have mapped memory which is gone: their runs start others."""
        self.base_weights = None
        for trainer in self.trainers:
            ray.kill(trainer)

    def close(self) -> None:
        """Give the GPU back to Ray; the actor on it ends."""
        if self._actor:
            ray.kill(self._actor)  # else its name stayed taken
        if self._group:
            remove_placement_group(self._group)

    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """Ray's scheduling strategy for a trainer on this GPU."""
        return bundle_of(self._group, 0)

    def _is_placed(self) -> bool:
        """Tell whether the group's node is alive: for a while after its end Ray calls the group ready."""
        (node,) = placement_group_table(self._group)["bundles_to_node_id"].values()
        return any(there["NodeID"] == node and there["Alive"] for there in ray.nodes())


class SharedGpuPool:
    """All shared GPUs of a sweep. On CPUs none is needed: trainers map the checkpoint file, and the page cache shares
    it.

    Args:
        gpus: held for the whole sweep.
        joining: those that whole-model trainers have first.
        load: has the base loaded onto a reserved GPU, called with it and its number.
    """

    def __init__(
        self,
        gpus: Sequence[SharedGpu],
        joining: Sequence[SharedGpu] = (),
        load: Callable[[SharedGpu, int], Awaitable[None]] | None = None,
    ):
        self.gpus, self.held, self.load = [*gpus, *joining], len(gpus), load
        self.joined = asyncio.Event()
        """Set by `join`."""
        self.slots = Slots(lambda number: self.gpus[number].capacity)

    @classmethod
    async def create(
        cls,
        shares: Sequence[float],
        joining: Sequence[float],
        trainer: ActorResources,
        model: ModelSource,
        dtype: str,
    ) -> "SharedGpuPool":
        """Wait for the GPUs and have the base loaded onto each.

        Args:
            shares: of a GPU each; what is below 1 leaves the rest to engines and whole-model trainers.
            joining: shares of the GPUs that `join` adds.
            trainer: what one rank asks for; its gpus are a fraction.
        """

        async def load(gpu: SharedGpu, number: int) -> None:
            await gpu.load(model, dtype, f"BaseWeightsActor-{number}")

        now, later = ([SharedGpu(share, trainer) for share in some] for some in (shares, joining))
        for gpu in now:
            gpu.reserve()
        for number, gpu in enumerate(now):
            await load(gpu, number)
        return cls(now, later, load)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[SharedGpu]:
        """Hold a slot for one trainer on the emptiest GPU, once one is free.

        Raises:
            ray.exceptions.RayActorError: the GPU's base weights have just been lost.
        """
        async with self.slots.hold_any(range(len(self.gpus))) as hold:
            gpu = self.gpus[hold.key]
            try:
                await gpu.check()
            except LOST:
                gpu.give_up()  # else the run would come here again, and again, until it is loaded anew
                raise
            yield gpu

    def close(self) -> None:
        """Give the GPUs back to Ray, after the last trainer."""
        for gpu in self.gpus:
            gpu.close()

    def join(self) -> None:
        """Have the GPUs of whole-model runs take layer trainers: these runs have ended."""
        self.joined.set()

    async def run(self, say: Callable[[str], None]) -> None:
        """Have the base loaded again where it is lost, and onto the GPUs that join, until cancelled.

        Args:
            say: tells the user.
        """
        async with asyncio.TaskGroup() as tasks:
            for number, gpu in enumerate(self.gpus):
                tasks.create_task(self._keep(number, gpu, say))

    async def _keep(self, number: int, gpu: SharedGpu, say: Callable[[str], None]) -> None:
        if number >= self.held:
            await self.joined.wait()
            gpu.reserve()
            await self._load(number, gpu)
            say("a GPU of the whole-model runs takes layer runs from now on")
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await gpu.check()
            except LOST as error:
                say(f"BaseWeightsActor-{number}: {reason_of(error)}: loading the base again")
                gpu.give_up()
                await self._load(number, gpu)

    async def _load(self, number: int, gpu: SharedGpu) -> None:
        await self.load(gpu, number)
        self.slots.refresh()


def gpu_bundle(share: float, trainer: ActorResources) -> dict[str, float]:
    """Make the resources of one shared GPU's placement group."""
    return {"GPU": share, "CPU": shared_gpu_cpus(share, trainer)}
