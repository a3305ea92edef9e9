"""GPUs that several layer trainers share, around one trunk.

A berth is a placement group of one GPU, whole or in part (and the CPUs of those aboard). A trunk host in it loads the
frozen base once and hands out CUDA IPC handles; each trainer aboard takes its fraction of the GPU and maps the host's
memory. On CPUs none of this is needed: trainers map the checkpoint file, and the page cache shares it.
"""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from layersweep.workers.config import ActorResources
from layersweep.workers.startup.model_source import ModelSource

from .gpu_share import BASE_WEIGHTS_CPUS, BASE_WEIGHTS_SHARE, aboard, berth_cpus


def gang(needs: ActorResources, ranks: int) -> PlacementGroup:
    """Places for all ranks of a run, taken together or not at all.

    Half crews, of one sweep or of two on the same cluster, would wait for each other for ever.
    """
    asked = {"CPU": needs.cpus, "GPU": needs.gpus}
    return placement_group([{kind: count for kind, count in asked.items() if count}] * ranks, strategy="PACK")


def host_and_gpus() -> str:
    """Return host and GPUs of the actor that asks."""
    gpus = ", ".join(map(str, ray.get_gpu_ids()))
    return socket.gethostname() + (f" GPU {gpus}" if gpus else "")


async def placed(group: PlacementGroup, seconds: float = 1.0) -> bool:
    """Whether a gang has its places, now or within so long."""
    return await asyncio.to_thread(group.wait, seconds)


def near(node: str) -> NodeAffinitySchedulingStrategy:
    """On a node, or where there is room if that one is full or gone."""
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def on(group: PlacementGroup, rank: int) -> PlacementGroupSchedulingStrategy:
    """Where a rank's actor goes."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)


class BaseWeightsActor:
    """Holds the frozen base on one GPU for the trainers aboard."""

    def __repr__(self) -> str:
        return "BaseWeightsActor()"

    def load(self, model: ModelSource, dtype: str) -> dict[str, Any]:
        """Load the base onto the GPU; returns what Trunk.attach needs."""
        from layersweep.policies.model.trunk import Trunk

        self.trunk = Trunk.load(model.here(), dtype, "cuda", model.trust_remote_code)
        return self.trunk.share()


@dataclass
class SharedGpu:
    """One GPU with room for several trainers."""

    group: PlacementGroup
    room: int
    """Trainers that it takes."""
    shared: Any = None
    """What the host's load gave: a reference."""
    aboard: int = 0

    def strategy(self) -> PlacementGroupSchedulingStrategy:
        return on(self.group, 0)


class SharedGpuPool:
    """All berths of a sweep; a trainer's rank boards one and leaves it.

    Args:
        shares: of a GPU each; what is below 1 leaves the rest to engines and whole-model trainers.
        trainer: what one rank asks for; its gpus are a fraction.
    """

    def __init__(self, shares: Sequence[float], trainer: ActorResources):
        self.berths = []
        for share in shares:
            room = aboard(share, trainer.gpus)
            bundle = {"GPU": share, "CPU": berth_cpus(share, trainer)}
            self.berths.append(SharedGpu(placement_group([bundle], strategy="PACK"), room))
        self.changed = asyncio.Condition()

    async def load(self, model: ModelSource, dtype: str) -> None:
        """Wait for the GPUs and have each host load the base."""
        for number, berth in enumerate(self.berths):
            await berth.group.ready()
            host = (
                ray.remote(BaseWeightsActor)
                .options(
                    name=f"BaseWeightsActor-{number}",
                    num_gpus=BASE_WEIGHTS_SHARE,
                    num_cpus=BASE_WEIGHTS_CPUS,
                    scheduling_strategy=berth.strategy(),
                )
                .remote()
            )
            berth.host = host
            berth.shared = host.load.remote(model, dtype)

    async def board(self) -> SharedGpu:
        """The emptiest berth, once one has room."""
        async with self.changed:
            await self.changed.wait_for(lambda: any(berth.aboard < berth.room for berth in self.berths))
            berth = max(self.berths, key=lambda berth: berth.room - berth.aboard)
            berth.aboard += 1
            return berth

    async def leave(self, berth: SharedGpu) -> None:
        async with self.changed:
            berth.aboard -= 1
            self.changed.notify_all()
