"""Search over how a cluster's GPUs are divided among engines and trainers, by the forecast's least hours.

Two kinds of split are tried: engines on GPUs of their own, as many as leave one for trainers; and an engine on every
GPU, or on every one that the whole model does not train on, with layer trainers around it. Either with one to eight
trainers to a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.actors.gpu_share import BASE_WEIGHTS_SHARE
from layersweep.workers.config import ActorResources

from .cluster_forecast import ClusterPlan, plan_on
from .cluster_shape import ClusterShape
from .cost_model import Assumptions
from .placement import whole_runs
from .plan import Plan

Changes = dict[str, dict[str, Any]]
"""Sections of a spec, and the fields that change there."""

TRAINERS = (1, 2, 3, 4, 6, 8)
"""Layer trainers that share a GPU."""
ENGINE_SHARE = 0.55
"""Part of a GPU of an engine with trainers around it: above a half, so that no two engines come to one GPU."""
UTILIZATIONS = (0.85, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Parts of a GPU's memory that an engine may take; the largest that leaves room for what else is there."""
MOST_ENGINES = 16
"""Numbers of engines that are tried at most."""
WORTH = 0.97
"""Part of the hours that a split must take at most to be worth a word: what is assumed is not known better."""
ALIKE = 1.01
"""Hours of a split that count as the least, as a multiple of these."""


@dataclass(frozen=True, eq=False)
class Split:
    """A division of the GPUs, and what is forecast of it."""

    changes: Changes
    forecast: ClusterPlan

    @property
    def runs(self) -> int:
        """Layer runs that train at the same time."""
        return self.forecast.schedule.layer_runs


def fastest_split(found: ClusterPlan, assumed: Assumptions | None = None) -> Split | None:
    """Return the split with the least hours; None where no split that fits is worth it.

    Args:
        found: the forecast of the plan as it is.
    """
    splits = []
    for alternatives in _candidates(found.plan, found.cluster):
        splits += [next(filter(None, (_forecast(found, changes, assumed) for changes in alternatives)), None)]
    hours = {split: split.forecast.schedule.hours for split in splits if split}
    least = min(hours.values(), default=math.inf)
    if least > found.schedule.hours * WORTH:
        return None
    # Of equals the one with most runs at a time: while some generate or wait, others train.
    return max((split for split in hours if hours[split] <= least * ALIKE), key=lambda split: split.runs)


def _forecast(found: ClusterPlan, changes: Changes, assumed: Assumptions | None) -> Split | None:
    """Forecast a plan with changes; None where it does not fit."""
    spec = found.plan.spec
    try:
        sections = {
            name: type(section := getattr(spec, name)).model_validate(section.model_dump() | fields)
            for name, fields in changes.items()
        }
        plan = replace(found.plan, spec=spec.model_copy(update=sections))
        forecast = plan_on(plan, found.cluster, assumed)
    except (SpecError, ValidationError):  # too large, or ranks of one run could meet on one GPU
        return None
    fits = all(memory.total <= found.cluster.gpu.memory for memory in forecast.memory)
    return Split(changes, forecast) if fits else None


def _candidates(plan: Plan, cluster: ClusterShape) -> Iterator[list[Changes]]:
    """Yield lists of changes, of which the first that fits is the best."""
    resources, rollout = plan.spec.resources, plan.spec.rollout
    spans, full = rollout.tensor_parallel_size, resources.full_trainer or resources.trainer

    def split(engines: int, engine: float, layer: float, whole: float) -> dict[str, Any]:
        return {
            "engines": engines,
            "engine": ActorResources(cpus=resources.engine.cpus, gpus=engine).model_dump(),
            "trainer": ActorResources(cpus=resources.trainer.cpus, gpus=layer).model_dump(),
            "full_trainer": ActorResources(cpus=full.cpus, gpus=whole).model_dump(),
            "concurrent_runs": None,
        }

    awake = {"sleep": False} if rollout.sleep else {}
    shares = UTILIZATIONS if rollout.kv_cache_memory_mib is None else ()
    lower = [share for share in shares if share < rollout.gpu_memory_utilization]
    most = (cluster.gpus - 1) // spans
    for engines in range(1, most + 1, max(1, -(-most // MOST_ENGINES))):
        for trainers in TRAINERS:
            layer = 1.0 if trainers == 1 else _part(1.0, trainers)
            own = {"resources": split(engines, float(spans), layer, 1.0)}
            rollouts = [awake, *({"gpu_memory_utilization": share} | awake for share in lower)]
            yield [own | ({"rollout": changed} if changed else {}) for changed in rollouts]
    if spans > 1:
        return
    left = round(1 - ENGINE_SHARE, 2)
    kinds = [(cluster.gpus, _part(left, 1))]
    if whole_runs(plan):
        kinds.append((cluster.gpus - resources.full_trainer_ranks, 1.0))
    for engines, whole in kinds:
        for trainers in TRAINERS:
            around = split(engines, ENGINE_SHARE, _part(left, trainers), whole)
            rollouts = [{"gpu_memory_utilization": share} | awake for share in shares] or [awake]
            if not (rollout.cuda_graphs or rollout.staleness):
                rollouts.append({"gpu_memory_utilization": UTILIZATIONS[0], "sleep": True})
            yield [{"resources": around, "rollout": changed} for changed in rollouts]


def _part(share: float, trainers: int) -> float:
    """Return the part of a GPU of each of some trainers that have a share of it with the base's weights."""
    return int(100 * (share - BASE_WEIGHTS_SHARE) / trainers + 1e-6) / 100
