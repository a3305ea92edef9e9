"""Scores of the sweep's own runs beside those of its variants; the scorer over stand-ins for Ray's actors."""

import asyncio
from types import SimpleNamespace

import pandas as pd
import pytest
import ray

from layersweep.orchestrator.execution import variant_scoring
from layersweep.orchestrator.execution.clients import CollectorClient, EngineClient, RolloutClient, VariantClient
from layersweep.orchestrator.execution.context import SweepContext
from layersweep.orchestrator.execution.engine_slot import EngineSlot
from layersweep.orchestrator.execution.failures import AdaptiveTimeouts
from layersweep.orchestrator.execution.progress import Progress
from layersweep.orchestrator.execution.sleep_phases import NoSleepPhases
from layersweep.orchestrator.execution.variant_scoring import VariantScorer, copy_scores
from layersweep.policies.variant import RunChange, Variant
from layersweep.workers.storage.run_store import RunStore
from tests.orchestrator.execution.test_driver_scale import FREE
from tests.simulations.driver_scale import study
from tests.simulations.stand_ins import Actor, Collector, Durations, Engine, RolloutWorker, World


def test_runs_scores_are_copied_once(tmp_path):
    """What is there already is left as it is, new ones come along, and the sweep's folder is not touched."""
    sweep, target = str(tmp_path / "s"), str(tmp_path / "s" / "variants")
    store = RunStore(sweep, "full-seed0")
    store.write_metadata({"selection": "full", "seed": 0})
    store.write_scores(9, "selection", "sort", pd.DataFrame({"score": [1.0, 0.0]}))
    copy_scores(sweep, target)
    copy = RunStore(target, "full-seed0")
    assert copy.metadata() == {"selection": "full", "seed": 0}
    copy.write_scores(9, "selection", "sort", pd.DataFrame({"score": [0.5, 0.5]}))
    store.write_scores(9, "final", "sort", pd.DataFrame({"score": [1.0]}))
    copy_scores(sweep, target)
    found = {key: frame["score"].tolist() for key, frame in copy.scores()}
    assert found == {(9, "selection", "sort"): [0.5, 0.5], (9, "final", "sort"): [1.0]}
    assert {key for key, _ in store.scores()} == set(found)


VARIANTS = [Variant(f"full.x{factor}", (RunChange("full", factor),)) for factor in range(7)]


class Maker(Actor):
    """Gives each variant's name for its weights."""

    async def do_make(self, variant: Variant, seed: int) -> dict[str, str]:
        return {"change_norm": variant.name}


class FullEngine(Engine):
    """Notes how many variants it has at a time, and their weights."""

    most = 0
    weights: list[str] = []

    async def do_push(self, run, version, weights):
        self.weights = [*self.weights, weights["change_norm"]]
        await super().do_push(run, version, weights)
        self.most = max(self.most, len(self.versions))


def score(tmp_path, at_once: int, faults=None, twice: bool = False):
    """Score the variants of two seeds; engine and world."""
    plan = study(str(tmp_path), 2, 3, layers=2, resources={"engines": 1}, recovery={"patience": 5})
    world = World(16, Durations(0.0, 0.001, lambda selection: 0.0, 0.0, 0.0, 0.0), FREE, faults=faults)
    engine = FullEngine(world, 0)

    async def start(client):
        """Nothing to load."""

    slot = EngineSlot("Engine-0", EngineClient(engine), lambda name: EngineClient(engine), start)
    actors = SimpleNamespace(
        engines=SimpleNamespace(slot_of=lambda run: slot, phases=NoSleepPhases()),
        collector=CollectorClient(Collector(world)), rollout_worker=RolloutClient(RolloutWorker(world)),
    )  # fmt: skip

    async def work():
        async with asyncio.TaskGroup() as tasks:
            context = SweepContext(plan, actors, Progress([], 0), tasks, AdaptiveTimeouts(5), 1, lambda digest: None)
            scorer = VariantScorer(context, VariantClient(Maker(world)), asyncio.Semaphore(at_once))
            for _ in range(1 + twice):
                await scorer.score(VARIANTS, [0, 1])

    asyncio.run(work())
    return engine, world


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_variant_of_each_seed_is_pushed_scored_and_dropped(tmp_path, at_once):
    """The engine refuses a variant whose weights it does not have at the version asked for; asked twice, it is scored
    once. All suites of the study are evaluated."""
    engine, world = score(tmp_path, at_once, twice=True)
    assert sorted(engine.weights) == sorted(variant.name for variant in VARIANTS for _ in range(2))
    assert engine.most == at_once and not engine.versions
    assert world.statuses.keys() == {f"{variant.name}-seed{seed}" for variant in VARIANTS for seed in (0, 1)}
    assert {status for status, _ in world.statuses.values()} == {"completed"}
    assert world.calls["evaluation"] % 14 == 0 and world.calls["evaluation"] == world.calls["record_scores"]


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 14), (1e6, 1)])
def test_how_many_are_scored_is_said(tmp_path, monkeypatch, capfd, seconds, lines):
    """At the start, at the end, and in between not more often than every so many seconds; nothing to score says
    nothing."""
    monkeypatch.setattr(variant_scoring, "REPORT_SECONDS", seconds)
    score(tmp_path, 1, twice=True)
    out, err = capfd.readouterr()
    said = out + err
    assert said.count("14 variants to score on the selection split") == 1 == said.count("14 of 14 variants scored")
    assert said.count("of 14 variants scored") == lines


def test_a_variant_is_made_again_where_the_engine_had_lost_it(tmp_path):
    calls = []

    async def fault(actor, engine, run, *args):
        calls.append(run)
        if len(calls) == 1:
            raise ray.exceptions.ActorUnavailableError("", None)

    engine, world = score(tmp_path, 1, faults={"evaluation": fault})
    assert {status for status, _ in world.statuses.values()} == {"completed"}
    assert calls.count(calls[0]) > 1
