"""Probing of the base: one rollout batch per seed, and what it tells of every layer, before anything is trained."""

import asyncio
import sys
from typing import Any

import pandas as pd

from layersweep.orchestrator.planning.gpu_allocation import SUPPORT_ACTOR
from layersweep.orchestrator.planning.plan import Plan
from layersweep.policies.selection import run_name
from layersweep.workers.actors.engine import Engine
from layersweep.workers.actors.prober import Prober
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.startup.model_source import ModelSource

from .actors import RESTARTABLE, SweepActors, base_model, create_actor
from .clients import EngineClient, ProberClient, Reference, RolloutClient
from .engine_pool import engine_dtype
from .failures import reason_of
from .manifest import SweepManifest
from .ray_nodes import wait_for_room
from .ray_session import connected
from .screening import Screening, ScreeningWeights, cost_text, screen, screened_selections
from .screening import begin as begin_screening
from .sleep_phases import NoSleepPhases, SleepPhases
from .sweep_lock import hold_lock
from .variant_scoring import FAILURES, variant_scorer


class ProbeFailed(RuntimeError):
    """An actor failed; nothing of the probe is kept but what a screening has scored."""


def probe_base(plan: Plan, address: str | None, screening: Screening | None = None) -> list[dict[str, Any]]:
    """Generate the first rollout batch of every seed, which all runs of a sweep share, and probe the base with it.

    Args:
        address: of a running Ray cluster; None starts one here.
        screening: also train every selection of the sweep on the batch, and score it.

    Returns:
        Rows of probe.parquet.

    Raises:
        SpecError: the cluster has no room, a driver has the sweep, or a screening has no learning rate.
        ProbeFailed: it could not be carried out; what a screening has scored is kept.
    """
    inner = screening.plan(plan, SweepManifest.load(plan.folder)) if screening else None
    with connected(address, f"layersweep-{plan.spec.name}", plan.spec.resources.on_gpu()) as actor_environment:
        wait_for_room(plan)
        with hold_lock(plan.folder):
            try:
                work = _probe(plan, actor_environment) if inner is None else _screen(plan, inner, actor_environment)
                return asyncio.run(work)
            except FAILURES as error:
                raise ProbeFailed(reason_of(error)) from error


async def _probe(plan: Plan, actor_environment: dict[str, Any]) -> list[dict[str, Any]]:
    spec = plan.spec
    # First, as for a sweep: what else there is to load can be loaded meanwhile.
    options = {"max_concurrency": 10_000, "runtime_env": actor_environment}
    engine = EngineClient(create_actor(Engine, "Engine-0", spec.resources.engine, **options).remote(0))
    model = await base_model(plan, _say)
    worker = create_actor(RolloutWorker, "RolloutWorker", SUPPORT_ACTOR, max_concurrency=10_000, **RESTARTABLE)
    rollout_worker = RolloutClient(
        worker.remote(
            model, spec.task, spec.evaluation.suites, spec.training, plan.window, None,
            spec.algorithm.build().max_num_gen_batches,
        )
    )  # fmt: skip
    prober = _create_prober(plan, model, actor_environment)
    await engine.start(model, plan.architecture.name, spec.rollout, engine_dtype(plan), 0, False)
    return (await _measure(plan, engine, rollout_worker, prober, NoSleepPhases()))[0]


async def _screen(plan: Plan, inner: Plan, actor_environment: dict[str, Any]) -> list[dict[str, Any]]:
    """Probe, and screen with the same actors.

    Args:
        plan, inner: of the sweep and of the screening.
    """
    if discarded := begin_screening(inner):
        _say(discarded)
    _say(cost_text(plan, inner))

    async def trained(actors: SweepActors) -> ScreeningWeights:
        return ScreeningWeights(inner, _create_prober(plan, actors.model, actor_environment))

    async with variant_scorer(inner, actor_environment, trained) as scorer:
        actors, weights = scorer.context.actors, scorer.maker
        engine = actors.engines.slot_of(run_name("base", plan.spec.seeds[0])).engine
        rows, batches = await _measure(plan, engine, actors.rollout_worker, weights.prober, actors.engines.phases)
        screened = await screen(scorer, weights, batches)
    return pd.DataFrame(rows).merge(screened, on=["selection", "seed"], how="left").to_dict("records")


def _create_prober(plan: Plan, model: ModelSource, actor_environment: dict[str, Any]) -> ProberClient:
    spec = plan.spec
    needs = spec.resources.full_trainer or spec.resources.trainer
    actor = create_actor(Prober, "Prober", needs, runtime_env=actor_environment)
    return ProberClient(actor.remote(model, spec.algorithm, spec.training, needs.gpus))


async def _measure(
    plan: Plan,
    engine: EngineClient,
    rollout_worker: RolloutClient,
    prober: ProberClient,
    phases: SleepPhases | NoSleepPhases,
) -> tuple[list[dict[str, Any]], dict[int, Reference]]:
    """Return the rows of probe.parquet, and the first rollout batch of each seed."""
    rows, batches, further = [], {}, screened_selections(plan)
    for seed in plan.spec.seeds:
        async with phases.hold("generation"):
            batch = rollout_worker.rollout(engine, None, 0, seed, 0)
            for notice in await batch.done or ():
                _say(notice)
        batches[seed] = batch.value
        async with phases.hold("training"):
            found = await prober.probe(batch.value, further)
        rows += [row | {"sweep": plan.spec.name, "seed": seed} for row in found]
        _say(f"probed with the first batch of seed {seed}")
    return rows, batches


def _say(text: str) -> None:
    print(f"layersweep: {text}", file=sys.stderr, flush=True)
