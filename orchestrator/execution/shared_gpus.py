"""GPUs that several layer trainers share, around one copy of the base model."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from layersweep.workers.actors.base_weights import BaseWeightsActor
from layersweep.workers.actors.gpu_share import BASE_WEIGHTS_CPUS, BASE_WEIGHTS_SHARE, shared_gpu_cpus, trainers_per_gpu
from layersweep.workers.actors.ray_placement import bundle_of
from layersweep.workers.config import ActorResources
from layersweep.workers.startup.model_source import ModelSource

from .slots import Slots


@dataclass(frozen=True)
class SharedGpu:
    """One GPU, or a part of it, shared by several trainers.

    On it an actor holds the base weights and hands out CUDA IPC handles; each trainer takes its fraction of the GPU and
    maps that memory.
    """

    group: PlacementGroup
    capacity: int
    """Trainers that fit."""
    actor: Any
    """The actor that holds the base weights; they live as long as this handle."""
    base_weights: Any
    """Reference to what Trunk.attach needs."""

    def strategy(self) -> PlacementGroupSchedulingStrategy:
        """Ray's scheduling strategy for a trainer on this GPU."""
        return bundle_of(self.group, 0)


class SharedGpuPool:
    """All shared GPUs of a sweep. On CPUs none is needed: trainers map the checkpoint file, and the page cache shares
    it."""

    def __init__(self, gpus: Sequence[SharedGpu]):
        self.gpus = list(gpus)
        self.slots = Slots(lambda number: self.gpus[number].capacity)

    @classmethod
    async def create(
        cls, shares: Sequence[float], trainer: ActorResources, model: ModelSource, dtype: str
    ) -> "SharedGpuPool":
        """Wait for the GPUs and have the base loaded onto each.

        Args:
            shares: of a GPU each; what is below 1 leaves the rest to engines and whole-model trainers.
            trainer: what one rank asks for; its gpus are a fraction.
        """
        groups = [placement_group([gpu_bundle(share, trainer)], strategy="PACK") for share in shares]
        gpus = []
        for number, (share, group) in enumerate(zip(shares, groups, strict=True)):
            await group.ready()
            options = {
                "name": f"BaseWeightsActor-{number}", "num_gpus": BASE_WEIGHTS_SHARE, "num_cpus": BASE_WEIGHTS_CPUS,
                "scheduling_strategy": bundle_of(group, 0),
            }  # fmt: skip
            actor = ray.remote(BaseWeightsActor).options(**options).remote()
            weights = actor.load.remote(model, dtype)
            gpus.append(SharedGpu(group, trainers_per_gpu(share, trainer.gpus), actor, weights))
        return cls(gpus)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[SharedGpu]:
        """Hold a slot for one trainer on the emptiest GPU, once one is free."""
        async with self.slots.hold_any(range(len(self.gpus))) as hold:
            yield self.gpus[hold.key]


def gpu_bundle(share: float, trainer: ActorResources) -> dict[str, float]:
    """Make the resources of one shared GPU's placement group."""
    return {"GPU": share, "CPU": shared_gpu_cpus(share, trainer)}
