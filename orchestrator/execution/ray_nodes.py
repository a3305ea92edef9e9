"""The nodes of the cluster that Ray is connected to."""

import time
from functools import cache
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from layersweep.orchestrator.planning.placement import placement_problems
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.errors import SpecError


def wait_for_room(plan: Plan) -> None:
    """Wait until the cluster can place what the sweep needs at least; its autoscaler is told what it could use.

    Raises:
        SpecError: it cannot after `resources.wait_for_nodes` seconds.
    """
    resources = plan.spec.resources
    if resources.wait_for_nodes:
        needs = [resources.engine] * resources.engines
        for run in plan.runs:
            ranks = resources.full_trainer_ranks if run.selection.trains_all else resources.trainer_ranks
            needs += [(resources.full_trainer if run.selection.trains_all else None) or resources.trainer] * ranks
        request_resources(bundles=[{"CPU": need.cpus, "GPU": need.gpus} for need in needs])
    until = time.monotonic() + resources.wait_for_nodes
    while problems := placement_problems(plan, resources_of(alive_nodes())):
        if time.monotonic() >= until:
            raise SpecError(problems)
        time.sleep(1)


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def resources_of(nodes: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [node["Resources"] for node in nodes]


@cache
def cpus_of(node: str) -> int:
    """Number of CPUs that Ray counts on a node, at least 1."""
    here = sum(there["Resources"].get("CPU", 0) for there in ray.nodes() if there["NodeID"] == node)
    return max(1, int(here))
