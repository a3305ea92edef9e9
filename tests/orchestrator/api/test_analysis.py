"""`probe`, `dissect` and `compose` from Python: what reaches the commands, and the tables that come back."""

import asyncio
import threading
from functools import partial

import pandas as pd
import pytest

import layersweep
from layersweep.cli import DEMO
from layersweep.orchestrator.commands import compose, dissect, probe
from layersweep.orchestrator.commands.compose import Wanted
from layersweep.orchestrator.execution.screening import Screening


@pytest.fixture
def called(tmp_path, monkeypatch) -> list:
    """Arguments of the commands, and whether they came in the main thread; each answers a table's path."""
    calls = []

    def command(*args: object) -> str:
        calls.append((*args, threading.current_thread() is threading.main_thread()))
        pd.DataFrame({"call": [len(calls)]}).to_parquet(tmp_path / "table.parquet")
        return str(tmp_path / "table.parquet")

    for module, name in ((probe, "probe"), (dissect, "dissect"), (compose, "compose")):
        monkeypatch.setattr(module, name, command)
    return calls


def test_they_are_the_commands_and_give_their_tables(tmp_path, called):
    sweep = layersweep.Sweep(tmp_path)
    assert layersweep.probe(DEMO, screen=3, screen_prompts=64)["call"].tolist() == [1]
    layersweep.probe({"name": "x", "model": {"type": "tiny"}, "task": {"type": "sort_digits"}}, address="auto")
    layersweep.dissect(sweep, "layer-01", overrides={"resources.engines": 2})
    table = layersweep.compose(sweep, [1, 5], ["full", "layer-02-mlp"], greedy=3, strengths=[0.5, 1])
    assert table["call"].tolist() == [4]
    (spec, *screened), (other, *plain), dissected, composed = called
    assert (spec.name, *screened) == ("demo", None, Screening(3, 64), True)
    assert (other.name, *plain) == ("x", "auto", None, True)
    assert dissected == (str(tmp_path), ("layer-01",), {"resources.engines": 2}, None, True)
    wanted = Wanted((("layer-01", "layer-05"), ("full", "layer-02-mlp")), greedy=3, strengths=(0.5, 1))
    assert composed == (str(tmp_path), wanted, None, None, True)


@pytest.mark.parametrize(
    "function", [partial(layersweep.probe, DEMO), partial(layersweep.dissect, "s"), partial(layersweep.compose, "s")]
)
def test_where_an_event_loop_runs_they_run_beside_it(called, function):
    async def cell() -> pd.DataFrame:
        return function()

    assert asyncio.run(cell())["call"].tolist() == [1] and called[0][-1] is False


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(layersweep.SpecError, match="give screen too"):
        layersweep.probe(DEMO, screen_prompts=8)
    for function in (layersweep.dissect, layersweep.compose):
        with pytest.raises(layersweep.SpecError, match="no such file") as refused:
            function(tmp_path)
        error = refused.value
        while error := error.__context__:
            assert str(error) != "no running event loop"
