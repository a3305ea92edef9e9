"""`layersweep probe` around the actors: what it writes, prints and refuses; a whole one is in tests/end_to_end."""

import pandas as pd
import pytest

from layersweep.cli import DEMO, main
from layersweep.orchestrator.commands import probe as command
from layersweep.orchestrator.commands.compare import compare_tables
from layersweep.orchestrator.execution.probing import ProbeFailed
from layersweep.orchestrator.execution.screening import Screening
from layersweep.workers.storage.tables import CONTRIBUTION, PROBE


@pytest.fixture
def asked(monkeypatch) -> list:
    """Plans that were probed, each with its screening, and with measures that rise with the layer."""
    plans = []

    def probe_base(plan, address, screening):
        plans.append((plan, screening))
        return [
            {"sweep": plan.spec.name, "selection": f"layer-{k:02d}", "layer": k, "modules": None, "seed": seed,
             "parameters": 37_056, "gradient_norm": k + 0.5, "skip_loss": None}
            for seed in plan.spec.seeds for k in range(6)
        ]  # fmt: skip

    monkeypatch.setattr(command, "probe_base", probe_base)
    return plans


def sweep(tmp_path) -> list[str]:
    return [DEMO, "name=probed", f"output={tmp_path}"]


def test_before_a_sweep_there_is_the_table_alone(tmp_path, asked, capsys):
    assert main(["probe", *sweep(tmp_path), "seeds=[0,1]"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"{tmp_path}/probed/probe.parquet" and "gradient norm" in printed
    rows = PROBE.read(f"{tmp_path}/probed/probe.parquet")
    assert rows.groupby("seed")["gradient_norm"].sum().tolist() == [18.0, 18.0]
    assert [file.name for file in (tmp_path / "probed").iterdir()] == ["probe.parquet"]
    assert len(asked) == 1


def test_a_screening_is_asked_for(tmp_path, asked, capsys):
    """Columns that nothing was measured for are not shown."""
    assert main(["probe", *sweep(tmp_path)]) == 0
    assert "short training" not in capsys.readouterr().out
    assert main(["probe", *sweep(tmp_path), "--screen", "3", "--screen-prompts", "64"]) == 0
    assert [screening for _, screening in asked] == [None, Screening(3, 64)]
    assert main(["probe", *sweep(tmp_path), "--screen-prompts", "64"]) == 2
    assert "give --screen STEPS too" in capsys.readouterr().err and len(asked) == 2


def contributions(folder) -> None:
    rows = [
        {"selection": f"layer-{k:02d}", "kind": "layer", "layer": k, "status": "completed", "score": 0.5, "seeds": 1,
         "contribution": 0.1 * k, "contribution_low": 0.1 * k - 0.05, "contribution_high": 0.1 * k + 0.05,
         "contribution_sd": 0.025, "model_layers": 6}
        for k in range(6)
    ]  # fmt: skip
    folder.mkdir()
    with (folder / "contribution.parquet").open("wb") as file:
        CONTRIBUTION.write(CONTRIBUTION.frame(rows), file)
    (folder / "sweep.yaml").touch()


def test_beside_a_sweep_it_is_held_against_its_contributions(tmp_path, asked, capsys):
    """A rank correlation of 1, the best layer found; the report and a comparison have it too."""
    contributions(tmp_path / "probed")
    assert main(["probe", *sweep(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "layers │" in line]
    assert "gradient norm" in line and "1.000" in line and line.rstrip(" │").endswith("0.500")
    assert "Does a probe predict the contribution?" in (tmp_path / "probed" / "report.html").read_text()
    contributions(tmp_path / "other")
    compare_tables([str(tmp_path / "probed"), f"{tmp_path}/other/contribution.parquet"], 3, None, None)
    assert sum("gradient norm" in line for line in capsys.readouterr().out.splitlines()) == 1


def test_a_folder_of_something_else_is_refused(tmp_path, asked, capsys):
    (tmp_path / "probed").mkdir()
    (tmp_path / "probed" / "thesis.tex").touch()
    assert main(["probe", *sweep(tmp_path)]) == 2
    assert "holds files of something else (thesis.tex)" in capsys.readouterr().err and not asked


def test_a_probe_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    def failing(plan, address, screening):
        raise ProbeFailed("the engine died")

    monkeypatch.setattr(command, "probe_base", failing)
    assert main(["probe", *sweep(tmp_path)]) == 1
    assert "the engine died" in capsys.readouterr().err and not (tmp_path / "probed").exists()


def test_a_sweep_may_begin_where_a_base_was_probed(tmp_path, asked):
    from layersweep.orchestrator.execution.sweep_folder import check_folder

    assert main(["probe", *sweep(tmp_path), "seeds=[0]"]) == 0
    check_folder(f"{tmp_path}/probed", fresh=False)
    assert len(pd.read_parquet(tmp_path / "probed" / "probe.parquet")) == 6


def test_ctrl_c_says_what_goes_on(tmp_path, monkeypatch, capsys):
    def interrupted(plan, address, screening):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "probe_base", interrupted)
    monkeypatch.chdir(tmp_path)
    assert main(["probe", "--screen", "2"]) == 130
    assert capsys.readouterr().err == "layersweep: stopped; what is scored is kept, and the same command goes on\n"
    assert main(["probe"]) == 130 and capsys.readouterr().err == "layersweep: stopped\n"
