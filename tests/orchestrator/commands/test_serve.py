"""`layersweep serve`: which runs and stacks become models, and what is refused before an engine starts.

What is served is compared with transformers in tests/rollout/serving.
"""

import socket

import pytest

from layersweep.cli import main
from layersweep.orchestrator.commands.finished_sweep import open_sweep
from layersweep.orchestrator.commands.serve import RunStack, models_of
from tests.helpers.served_sweep import make_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, model_folder):
    return make_sweep(tmp_path_factory.mktemp("runs"), model_folder)


def names(sweep, *asked):
    return [model.name for model in models_of(open_sweep(sweep), *asked)]


def test_all_runs_and_stacks_are_models(sweep):
    """By selection where there is one seed; `layer-03` has two. The table has a stack scored on both splits, once."""
    assert names(sweep, (), ()) == [
        "full", "layer-00", "layer-01", "layer-02", "layer-03-seed0", "layer-03-seed1", "layers-00-02",
        "layer-01-attention", "stack-00-01-x0.5",
    ]  # fmt: skip


def test_some_alone(sweep):
    assert names(sweep, ["layer-01"], ()) == ["layer-01"]
    assert names(sweep, ["layer-03"], ()) == ["layer-03-seed0", "layer-03-seed1"]
    assert names(sweep, ["layer-03-seed1", "full"], ()) == ["layer-03-seed1", "full"]


def test_stacks(sweep):
    """Of the seeds that all members have: layer 3 was trained with 0 and 1, the others with 0."""
    finished = open_sweep(sweep)
    assert models_of(finished, (), [("layer-03", "layer-01")]) == [
        RunStack("stack-01-03", {"layer-03": 1.0, "layer-01": 1.0}, 0)
    ]
    assert models_of(finished, (), [("stack-00-01-x0.5",)]) == [
        RunStack("stack-00-01-x0.5", {"layer-00": 0.5, "layer-01": 0.5}, 0)
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--run", "layer-07"], "--run layer-07: no completed run of"),
        (["--run", "layer-03-seed2"], "there are full, layer-00"),
        (["--stack", "1+7"], "--stack layer-01+layer-07: layer-07 is no completed run"),
        (["--stack", "1+1"], "--stack layer-01+layer-01: names a run twice"),
        (["--stack", "stack-07"], "layers-00-02, layer-01-attention, stack-00-01-x0.5"),
        (["--no-token", "--host", "0.0.0.0"], "--no-token: 0.0.0.0 can be reached from other machines"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 8000: Cannot assign requested address"),
        (["--port", "70000"], "--port 70000: "),
        (["rollout.max_model_lenn=3"], "rollout.max_model_lenn: unknown key"),
        (["spec.yaml"], "spec.yaml: a value is written FIELD=VALUE"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(sweep, capsys, words, problem):
    assert main(["serve", sweep, *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_port_in_use_is_refused_at_once(sweep, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", sweep, "--port", str(port)]) == 2
    assert f"--host 127.0.0.1 --port {port}: Address already in use" in capsys.readouterr().err
