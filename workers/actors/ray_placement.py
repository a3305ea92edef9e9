"""Placement of actors by Ray: node affinity, placement groups, bundles."""

import asyncio
import socket

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from layersweep.workers.config import ActorResources


def gang(needs: ActorResources, ranks: int) -> PlacementGroup:
    """Make a placement group for all ranks of a run: all its bundles are reserved together, or none.

    Runs with half of their ranks, of one sweep or of two on a cluster, would wait for each other for ever.
    """
    asked = {"CPU": needs.cpus, "GPU": needs.gpus}
    return placement_group([{kind: count for kind, count in asked.items() if count}] * ranks, strategy="PACK")


def host_and_gpus() -> str:
    """Return host and GPUs of the actor that asks."""
    gpus = ", ".join(map(str, ray.get_gpu_ids()))
    return socket.gethostname() + (f" GPU {gpus}" if gpus else "")


async def wait_until_placed(group: PlacementGroup, seconds: float = 1.0) -> bool:
    """Wait up to `seconds` for a placement group; tell whether it is reserved."""
    return await asyncio.to_thread(group.wait, seconds)


def node_affinity(node: str) -> NodeAffinitySchedulingStrategy:
    """Return a soft affinity to a node: Ray places the actor elsewhere if that one is full or gone."""
    return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)


def bundle_of(group: PlacementGroup, rank: int) -> PlacementGroupSchedulingStrategy:
    """Return the strategy that puts a rank's actor into its bundle."""
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
