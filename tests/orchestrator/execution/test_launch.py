"""What is said where a sweep stops before any run has begun."""

import contextlib

import pytest

from layersweep.orchestrator.execution import driver, launch, ray_nodes, ray_session
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.startup.tiny_model_training import WarmupFailed
from layersweep.workers.storage.run_store import RunStore
from tests.orchestrator.spec.test_spec import demo


@pytest.mark.parametrize("begun", [False, True])
def test_advice_where_a_base_cannot_be_warmed_up(tmp_path, monkeypatch, capsys, begun):
    """There is no checkpoint to go on from, and `resume` would refuse another model.warmup_steps; later there is."""
    from ray.exceptions import RayTaskError

    def run_plan(plan, *_):
        if begun:
            RunStore(plan.folder, "full-seed0").write_metadata({"selection": "full"})
        raise RayTaskError("make", "", WarmupFailed("model: raise model.warmup_steps"))

    monkeypatch.setattr(ray_session, "connected", lambda *_: contextlib.nullcontext({}))
    monkeypatch.setattr(ray_nodes, "wait_for_room", lambda plan: None)
    monkeypatch.setattr(driver, "run_plan", run_plan)
    plan = make_plan(parse_spec(demo(output=str(tmp_path))))
    assert launch.carry_out(plan, lambda: launch.begin_sweep(plan, False), None) == launch.EXIT["failed"]
    said = capsys.readouterr().err
    assert "the sweep stopped: WarmupFailed: model: raise model.warmup_steps; " in said
    assert ("goes on from the last checkpoints" in said) is begun
    assert ("tries once more, `layersweep run --fresh` begins with a spec that you changed" in said) is not begun
