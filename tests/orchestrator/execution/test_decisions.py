"""Choices by the scores so far, over a table written by hand: finalists, and layers to train together."""

import asyncio
from types import SimpleNamespace

from layersweep.orchestrator.execution.decisions import Decisions
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.storage.tables import CONTRIBUTION
from tests.helpers.specs import demo

SCORES = {0: 0.2, 1: 0.9, 2: 0.4, 3: 0.3, 4: 0.5, 5: 0.1}
"""By layer: by score 1, 4, 2, 3, 0, 5. Layer 1 was pruned."""


class Collector:
    """Has the table, and takes the runs that are added."""

    def __init__(self, *further: dict):
        layers = [
            {"selection": f"layer-{k:02d}", "kind": "layer", "layer": k, "score": score,
             "status": "pruned" if k == 1 else "completed"} for k, score in SCORES.items()
        ]  # fmt: skip
        ends = [{"selection": name, "kind": name, "score": 0.6, "status": "completed"} for name in ("base", "full")]
        self.rows, self.added = CONTRIBUTION.frame([*ends, *layers, *further]), []

    async def table(self):
        return self.rows

    async def add_run(self, run):
        self.added.append(run["selection"])


def decisions(folder, collector, **spec) -> Decisions:
    """Of the demo with changes, over one collector."""
    plan, said = make_plan(parse_spec(demo(output=str(folder), **spec))), []
    progress = SimpleNamespace(say=said.append, add=lambda name: None, said=said)
    context = SimpleNamespace(
        plan=plan, actors=SimpleNamespace(collector=collector), progress=progress, failed=False
    )  # fmt: skip
    return Decisions(context, manifest=None, base=None)


def test_finalists_are_full_the_best_that_completed_and_their_controls(tmp_path):
    """Two of each kind: layers 4 and 2. The set of layers was not swept: each such run is one. Of the controls those of
    layer 4 and full, not that of layer 3."""
    combined = {"selection": "layers-best-2", "kind": "layers", "score": 0.3, "status": "completed"}
    controls = [{"type": "constant_reward", "of": [3, 4, "full"]}]
    found = decisions(tmp_path, Collector(combined), evaluation__finalists=2, controls=controls)
    names = {run.control_of: run.selection.name for run in found.plan.controls}
    assert set(names) == {"layer-03", "layer-04", "full"}
    expected = {"full", "layer-04", "layer-02", "layers-best-2", names["layer-04"], names["full"]}
    assert asyncio.run(found.finalists()) == expected


def test_combined_runs_are_of_the_best_layers_or_of_those_they_began_with(tmp_path):
    """A pruned layer is none of the best. The worst two were 0 and 3 when that run began."""
    RunStore(str(tmp_path / "demo"), "layers-worst-2-seed0").write_metadata({"layers": [0, 3]})
    collector = Collector()
    found = decisions(tmp_path, collector, combine=[{"only": "best 2"}, {"worst": 2}])
    assert [run.selection.layers for run in asyncio.run(found.combined_runs())] == [(2, 4), (0, 3)]
    assert collector.added == ["layers-best-2", "layers-worst-2"] and not found.context.failed


def test_too_few_layers_leave_out_the_combined_run_that_needs_them(tmp_path):
    """Five layers have a score and were not pruned."""
    found = decisions(tmp_path, Collector(), combine=[{"only": "best 6"}, {"only": "best 2"}])
    assert [run.selection.name for run in asyncio.run(found.combined_runs())] == ["layers-best-2"]
    assert found.context.failed
    assert "combine: layers-best-6 needs 6 layers with a score, the profile has 5" in found.context.progress.said


def test_a_profile_that_is_gone_costs_the_combined_runs_alone(tmp_path):
    """It was there when the sweep was planned."""
    profile = tmp_path / "profile.parquet"
    with profile.open("wb") as file:
        CONTRIBUTION.write(Collector().rows, file)
    found = decisions(tmp_path, Collector(), combine=[{"only": "best 2"}], profile=str(profile))
    profile.unlink()
    assert asyncio.run(found.combined_runs()) == [] and found.context.failed
    [said] = found.context.progress.said
    assert said.startswith(f"profile: there is no table at {profile}; name ")
