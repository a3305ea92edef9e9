"""`import layersweep`: light, documented, and the same functions as the command's."""

import asyncio
import inspect
import os
import pydoc
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

import layersweep
from layersweep.cli import DEMO
from layersweep.orchestrator.execution.progress import Progress, ProgressEvent
from layersweep.orchestrator.execution.run_state import RunState

SMALL = {
    "seeds": [0],
    "layers": [1],
    "training.steps": 4,
    "training.warmup_steps": 0,
    "training.prompts_per_step": 8,
    "evaluation": {"suites": [{"name": "all", "prompts": 8}]},
}


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, layersweep; heavy = ('torch', 'vllm', 'deepspeed', 'ray', 'pandas', 'pydantic', 'numpy', 'yaml'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_help_shows_every_function_with_its_documentation():
    shown = pydoc.plain(pydoc.render_doc(layersweep))
    for name in layersweep.__all__:
        member = getattr(layersweep, name)
        assert inspect.getdoc(member).splitlines()[0] in shown
        assert f"{name}(" in shown
    assert "_absolute" not in shown and "TYPE_CHECKING" not in shown


def test_a_spec_from_a_file_a_dict_and_a_spec(tmp_path):
    spec = layersweep.load_spec(DEMO, {"training.steps": 50, "seeds": [0, 1]})
    assert (spec.training.steps, spec.seeds) == (50, (0, 1))
    assert layersweep.load_spec(spec.model_dump(mode="json")) == spec
    assert layersweep.load_spec(spec, {"seeds": [3]}).seeds == (3,)
    assert layersweep.load_spec(spec, {"seeds": [3]}).training.steps == 50
    with pytest.raises(layersweep.SpecError) as error:
        layersweep.load_spec({"name": "a", "modl": "b"})
    assert error.value.problems[-1] == "modl: unknown key. Did you mean model?"


def test_a_plan_takes_what_load_spec_takes(tmp_path):
    """6 layers and full, with two seeds, and with the demo's three."""
    spec = layersweep.load_spec(DEMO, {"seeds": [0, 1], "output": str(tmp_path / "x")})
    assert len(layersweep.plan(spec).runs) == 14
    assert len(layersweep.plan(DEMO).runs) == 21
    assert not (tmp_path / "x").exists()


def test_the_tables_of_a_sweep_in_a_folder_and_in_memory(tmp_path):
    """Whatever fsspec reads; a sweep that has just begun has no table yet."""
    import fsspec

    for folder in (f"{tmp_path}/demo", "memory://sweeps/demo"):
        sweep = layersweep.Sweep(folder + "/")
        with pytest.raises(FileNotFoundError, match="demo/scores.parquet"):
            sweep.scores()
        with pytest.raises(layersweep.SpecError, match="demo/sweep.yaml: no such file"):
            sweep.spec  # noqa: B018
        filesystem, path = fsspec.core.url_to_fs(folder)
        filesystem.makedirs(path, exist_ok=True)
        for name in ("contribution", "scores", "steps"):
            with filesystem.open(f"{path}/{name}.parquet", "wb") as file:
                pd.DataFrame({"table": [name]}).to_parquet(file)
            assert getattr(sweep, name)()["table"].tolist() == [name]
        assert os.fspath(sweep) == folder and sweep.outcome is None


def test_compare_and_export_refuse_what_is_not_there(tmp_path):
    with pytest.raises(layersweep.SpecError, match="at least two tables"):
        layersweep.compare(tmp_path)
    with pytest.raises(layersweep.SpecError, match="no overlays there yet"):
        layersweep.export(layersweep.Sweep(tmp_path), "full", tmp_path / "new")


def test_compare_gives_a_row_per_pair(tmp_path):
    """Layers ranked 1 2 3 4 5 6 and 2 1 3 4 5 6: Spearman 1 - 6 * 2 / (6 * 35)."""
    for name, values in {"a": [1, 2, 3, 4, 5, 6], "b": [2, 1, 3, 4, 5, 6]}.items():
        rows = pd.DataFrame({"layer": range(6), "contribution": [value / 10 for value in values]})
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    pairs = layersweep.compare(tmp_path / "a.csv", tmp_path / "b.csv", noise=0.1)
    assert pairs["spearman"].tolist() == pytest.approx([1 - 12 / 210])


def test_events_count_the_steps_of_all_runs():
    events: list[ProgressEvent] = []
    progress = Progress(["a", "b"], steps=3, interval=1e9, listen=events.append)
    progress.entered("a", RunState.UPDATING)
    progress.stepped("a", 1, {"reward_mean": 0.25, "tokens": 10, "note": "text"}, seconds=1.0)
    progress.add("c", steps=2)
    progress.entered("b", RunState.FAILED)
    progress.ended("b", "no gradient")
    assert events[0] == ProgressEvent("a", "updating", 1, 3, {"reward_mean": 0.25, "tokens": 10.0}, "", 1, 6)
    assert (events[-1].run, events[-1].status, events[-1].message) == ("b", "failed", "no gradient")
    assert (events[-1].sweep_step, events[-1].sweep_steps) == (1, 8)
    assert str(events[0]) == "[1/6] a updating, step 1 of 3, reward 0.250"
    assert str(events[-1]) == "[1/8] b failed, step 0 of 3: no gradient"


def test_a_refusal_of_the_child_is_raised_here(tmp_path):
    """By iteration, by waiting and by awaiting alike; nothing is written."""
    spec = layersweep.load_spec(DEMO, {"layers": [99], "output": str(tmp_path / "out")})
    running = layersweep.start(spec)
    for consume in (list, type(running).wait, lambda sweep: asyncio.run(_awaited(sweep))):
        with pytest.raises(layersweep.SpecError, match="^layers: the model has layers 0 to 5, not 99$"):
            consume(running)
    assert not (tmp_path / "out").exists()


async def _awaited(sweep):
    return await sweep


def test_a_child_that_dies_is_an_error_with_its_log(tmp_path):
    running = layersweep.start(layersweep.load_spec(DEMO, {"output": str(tmp_path)}))
    os.kill(running._process._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="ended with code -9"):
        list(running)


@pytest.mark.slow
def test_a_sweep_from_python(tmp_path):
    """Followed to its end; then resumed with more steps in a running event loop, stopped, and awaited."""
    sweep = layersweep.start(layersweep.load_spec(DEMO, SMALL | {"output": str(tmp_path)}))
    events = list(sweep)
    assert sweep.outcome == "completed", sweep.log()
    steps = [(event.run, event.step) for event in events if event.metrics]
    assert sorted(steps) == [(run, step) for run in ("full-seed0", "layer-01-seed0") for step in (1, 2, 3, 4)]
    assert (events[-1].sweep_step, events[-1].sweep_steps) == (8, 8)
    assert sweep.contribution()["selection"].tolist() == ["base", "full", "layer-01"]
    assert len(sweep.steps()) == 8 and sweep.spec.training.steps == 4

    async def more():
        resumed = layersweep.resume(sweep, {"training.steps": 2000})
        async for event in resumed:
            if event.step > 5:
                break
        resumed.stop()
        return await resumed

    assert asyncio.run(more()).outcome == "stopped"
    assert sweep.spec.training.steps == 2000 and sweep.steps()["step"].max() >= 5


@pytest.mark.slow
def test_a_sweep_ends_with_checkpoints_when_its_parent_dies(tmp_path):
    code = (
        "import os, layersweep; from layersweep.cli import DEMO\n"
        f"changes = {SMALL | {'training.steps': 2000, 'output': str(tmp_path)}!r}\n"
        "sweep = layersweep.start(layersweep.load_spec(DEMO, changes))\n"
        "print(sweep._process._process.pid, flush=True)\n"
        "next(event for event in sweep if event.step > 1); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    until = time.monotonic() + 120
    while os.path.exists(f"/proc/{int(done.stdout)}"):
        assert time.monotonic() < until, "the sweep goes on"
        time.sleep(0.5)
    steps = layersweep.Sweep(f"{tmp_path}/demo").steps()["step"]
    assert 1 <= steps.max() < 1999
