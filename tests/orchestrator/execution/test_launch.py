"""What is said at the end of a sweep: where it stops before any run has begun, and where it is stopped."""

import contextlib

import pytest

from layersweep.orchestrator import report
from layersweep.orchestrator.execution import driver, launch, ray_nodes, sweep_session
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.workers.startup.tiny_model_training import WarmupFailed
from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.storage.tables import CONTRIBUTION
from tests.helpers.specs import demo


def carried_out(tmp_path, monkeypatch, run_plan) -> int:
    """The exit code of the demo with `run_plan` in place of its driver."""
    monkeypatch.setattr(sweep_session, "connected", lambda *_: contextlib.nullcontext({}))
    monkeypatch.setattr(ray_nodes, "wait_for_room", lambda plan: None)
    monkeypatch.setattr(driver, "run_plan", run_plan)
    plan = make_plan(parse_spec(demo(output=str(tmp_path))))
    with sweep_session.SweepSession(None, [plan]) as session:
        return launch.carry_out(plan, lambda: launch.begin_sweep(plan, False), session)


@pytest.mark.parametrize("begun", [False, True])
def test_advice_where_a_base_cannot_be_warmed_up(tmp_path, monkeypatch, capsys, begun):
    """There is no checkpoint to go on from, and `resume` would refuse another model.warmup_steps; later there is."""
    from ray.exceptions import RayTaskError

    def run_plan(plan, *_):
        if begun:
            RunStore(plan.folder, "full-seed0").write_metadata({"selection": "full"})
        raise RayTaskError("make", "", WarmupFailed("model: raise model.warmup_steps"))

    assert carried_out(tmp_path, monkeypatch, run_plan) == launch.EXIT["failed"]
    said = capsys.readouterr().err
    assert "the sweep stopped: WarmupFailed: model: raise model.warmup_steps; " in said
    assert ("goes on from the last checkpoints" in said) is begun
    assert ("tries once more, `layersweep run --fresh` begins with a spec that you changed" in said) is not begun


def test_a_run_that_a_stop_interrupts_is_stopped_in_the_table(tmp_path, monkeypatch, capsys):
    """The collector's row says `running`, as the file does; nobody runs it any more."""

    def run_plan(plan, *_):
        rows = [{"selection": name, "kind": name, "score": 0.5, "status": status, "contribution_reason": "no full run"}
                for name, status in (("base", "completed"), ("full", "running"))]  # fmt: skip
        return "stopped", CONTRIBUTION.frame(rows)

    monkeypatch.setattr(report, "write_report", lambda folder: None)
    assert carried_out(tmp_path, monkeypatch, run_plan) == launch.EXIT["stopped"]
    printed = capsys.readouterr()
    assert "stopped" in printed.out and "running" not in printed.out
    assert f"stopped; `layersweep resume {tmp_path}/demo` goes on from the last checkpoints" in printed.err
