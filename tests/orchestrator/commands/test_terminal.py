"""What the terminal shows of names, paths and reasons: their own text, whatever brackets are in it."""

import json
import os

import pandas as pd
import pytest
import yaml

from layersweep.cli import DEMO, main
from layersweep.orchestrator.commands.compare import show_comparison
from layersweep.orchestrator.execution.progress import Progress
from layersweep.orchestrator.execution.run_state import RunState
from layersweep.orchestrator.execution.sweep_lock import hold_lock
from layersweep.orchestrator.report.terminal_table import show_table
from layersweep.orchestrator.statistics.layer_profile import profile
from layersweep.orchestrator.statistics.profile_agreement import compare_all, concentrations
from layersweep.workers.storage.tables import CONTRIBUTION, STEPS

REASONS = ("x[0] of [/dim] is [red]", "[/]", "[", "a :smile: [link=x]y")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def failed(reason, selection="layer-00"):
    """A contribution table of one failed run."""
    row = {"sweep": "s", "selection": selection, "kind": "layer", "layer": 0, "status": "failed", "reason": reason}
    return CONTRIBUTION.frame([row])


@pytest.mark.parametrize("reason", REASONS)
def test_the_final_table_of_a_failed_sweep(capsys, reason):
    show_table(failed(reason, selection=f"layers{reason}"))
    shown = capsys.readouterr().out
    assert f"failed: {reason} " in shown and f"layers{reason} " in shown


def test_why_there_is_no_contribution(tmp_path, capsys):
    """Said once, of completed runs alone: a full run that gained nothing leaves empty cells."""
    rows = [
        {"sweep": "s", "selection": name, "kind": kind, "status": status, "contribution_reason": reason}
        for name, kind, status, reason in (
            ("base", "base", "completed", "the full run [/] gained nothing"),
            ("full", "full", "completed", "the full run [/] gained nothing"),
            ("layer-00", "layer", "failed", "no scores"),
            ("layer-trial", "trial", "completed", "a trial of a learning rate"),
        )
    ]
    table = CONTRIBUTION.frame(rows)
    show_table(table)
    assert capsys.readouterr().out.endswith("\nNo contribution: the full run [/] gained nothing.\n")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"name": "demo", "training": {"steps": 3}}))
    with open(tmp_path / "contribution.parquet", "wb") as file:
        CONTRIBUTION.write(table, file)
    assert main(["status", str(tmp_path)]) == 1  # a run failed; there is no steps.parquet
    assert capsys.readouterr().out.count("No contribution: the full run [/] gained nothing.") == 1
    show_table(table.assign(contribution=0.5))
    assert "No contribution" not in capsys.readouterr().out


@pytest.mark.parametrize("reason", REASONS)
def test_status_in_a_folder_with_brackets(tmp_path, capsys, reason):
    folder = tmp_path / "lr[2e-3]" / "demo"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "demo[/b]", "training": {"steps": 3}}))
    locations = {"layer-00-seed0": "host[0] GPU 1", "layer-000-seed0": "elsewhere"}
    (folder / "checkpoints" / "places.json").write_text(json.dumps(locations))
    table = pd.concat([failed(reason), failed(None, "layer-01").assign(status="running", layer=1)])
    steps = STEPS.frame([{"selection": "layer-00", "seed": 0, "step": 1, "tokens": 40, "rollout_seconds": 2.0}])
    for schema, frame in ((CONTRIBUTION, table), (STEPS, steps)):
        with open(folder / f"{schema.name}.parquet", "wb") as file:
            schema.write(schema.frame(frame), file)
    assert main(["status", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert f"demo[/b] -> {folder}" in " ".join(shown.split()) and f"failed: {reason} " in shown
    assert "2/3" in shown and " 20 " in shown  # 40 tokens in 2 seconds
    assert f"none now; it ended before the sweep did, layersweep resume {folder} goes on" in " ".join(shown.split())
    assert "stopped" in shown and "running" not in shown and "host[0]" not in shown
    with hold_lock(str(folder)):
        assert main(["status", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "host[0] GPU 1" in shown and "elsewhere" not in shown
    assert "running" in shown and "stopped" not in shown and f"process {os.getpid()} on " in shown
    (folder / "steps.parquet").write_bytes(b"broken")
    assert main(["status", str(folder)]) == 2
    assert f"{folder}/steps.parquet: cannot be read as parquet" in capsys.readouterr().err


@pytest.mark.parametrize("reason", REASONS)
def test_progress(capsys, reason):
    progress = Progress([f"layers{reason}-seed0"], steps=1, interval=0.0)
    progress.entered(f"layers{reason}-seed0", RunState.FAILED)
    progress.ended(f"layers{reason}-seed0", reason)
    assert f"layers{reason}-seed0 failed: {reason}" in capsys.readouterr().err
    progress.console.print(progress._table())  # as a live terminal shows it
    assert f"layers{reason}-seed0 " in capsys.readouterr().err


def test_compared_tables(capsys):
    table = pd.DataFrame({"layer": range(5), "contribution": [0.1, 0.2, 0.3, 0.5, 0.4], "contribution_sd": 0.01})
    profiles = [profile(table, f"{name}[/]") for name in ("a", "b", "c")]
    show_comparison(profiles, compare_all(profiles), concentrations(profiles), 3)
    assert "a[/] and b[/]" in capsys.readouterr().out


def test_the_plan_of_a_sweep_with_brackets(tmp_path, capsys):
    spec = yaml.safe_load(open(DEMO)) | {"name": "lr-2e-3", "seeds": [0], "output": str(tmp_path / "lr[/dim]")}
    (tmp_path / "sweep[1].yaml").write_text(yaml.safe_dump(spec))
    assert main(["plan", str(tmp_path / "sweep[1].yaml")]) == 0
    assert "lr[/dim]" in capsys.readouterr().out
