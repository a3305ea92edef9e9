"""Probing of the base: one rollout batch per seed, and what it tells of every layer, before anything is trained."""

import asyncio
import sys
from typing import Any

from ray.exceptions import RayError

from layersweep.orchestrator.planning.gpu_allocation import SUPPORT_ACTOR
from layersweep.orchestrator.planning.plan import Plan
from layersweep.workers.actors.engine import Engine
from layersweep.workers.actors.prober import Prober
from layersweep.workers.actors.rollout_worker import RolloutWorker

from .actors import RESTARTABLE, base_model, create_actor
from .clients import EngineClient, ProberClient, RolloutClient
from .engine_pool import engine_dtype
from .failures import reason_of
from .ray_nodes import wait_for_room
from .ray_session import connected
from .sweep_lock import hold_lock


class ProbeFailed(RuntimeError):
    """An actor failed; nothing of the probe is kept."""


def probe_base(plan: Plan, address: str | None) -> list[dict[str, Any]]:
    """Generate the first rollout batch of every seed, which all runs of a sweep share, and probe the base with it.

    Args:
        address: of a running Ray cluster; None starts one here.

    Returns:
        Rows of probe.parquet.

    Raises:
        SpecError: the cluster has no room, or a driver has the sweep.
        ProbeFailed: it could not be carried out.
    """
    with connected(address, f"layersweep-{plan.spec.name}", plan.spec.resources.on_gpu()) as actor_environment:
        wait_for_room(plan)
        with hold_lock(plan.folder):
            try:
                return asyncio.run(_probe(plan, actor_environment))
            except (RayError, OSError) as error:
                raise ProbeFailed(reason_of(error)) from error


async def _probe(plan: Plan, actor_environment: dict[str, Any]) -> list[dict[str, Any]]:
    spec, resources = plan.spec, plan.spec.resources
    options = {"runtime_env": actor_environment}
    # First, as for a sweep: what else there is to load can be loaded meanwhile.
    engine = EngineClient(
        create_actor(Engine, "Engine-0", resources.engine, max_concurrency=10_000, **options).remote(0)
    )
    model = await base_model(plan, _say)
    worker = create_actor(RolloutWorker, "RolloutWorker", SUPPORT_ACTOR, max_concurrency=10_000, **RESTARTABLE)
    rollout_worker = RolloutClient(
        worker.remote(
            model, spec.task, spec.evaluation.suites, spec.training, plan.window, None,
            spec.algorithm.build().max_num_gen_batches,
        )
    )  # fmt: skip
    needs = resources.full_trainer or resources.trainer
    prober = ProberClient(
        create_actor(Prober, "Prober", needs, **options).remote(model, spec.algorithm, spec.training, needs.gpus)
    )
    await engine.start(model, plan.architecture.name, spec.rollout, engine_dtype(plan), 0, False)
    rows = []
    for seed in spec.seeds:
        batch = rollout_worker.rollout(engine, None, 0, seed, 0)
        for notice in await batch.done or ():
            _say(notice)
        rows += [row | {"sweep": spec.name, "seed": seed} for row in await prober.probe(batch.value)]
        _say(f"probed with the first batch of seed {seed}")
    return rows


def _say(text: str) -> None:
    print(f"layersweep: {text}", file=sys.stderr, flush=True)
