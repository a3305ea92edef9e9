"""A search in progress, and sets of layers picked from a table."""

import asyncio

import pandas as pd
import pytest

from layersweep.orchestrator.commands.show_plan import show_plan
from layersweep.orchestrator.execution.failures import RungDecisionFailed
from layersweep.orchestrator.execution.halving_barrier import SuccessiveHalvingBarrier
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.combined_runs import pick
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.layers import CombinedRun
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.orchestrator.statistics.halving_schedule import Rung
from layersweep.policies.selection import Selection
from tests.helpers.specs import demo


def test_layers_meet_at_rungs_and_the_weaker_stop():
    """4 layers to step 2, 2 to step 4, 1 to step 6; layer 3 fails on its way to the first rung. Quality is the
    layer's number: 1 and 2 pass the first rung, 2 the second."""
    rungs = [Rung(2, 4, 2, 1), Rung(4, 2, 1, 1), Rung(6, 1, 1, 4)]
    asked = []

    async def choose(rung, layers):
        asked.append((rung.step, layers))
        return sorted(layers)[-rung.keep :]

    async def train(halving, layer):
        for step in range(1, 7):
            await asyncio.sleep(0.001 * (layer + 1))
            if layer == 3:
                await halving.withdraw("run-3")
                return step, "failed"
            if step in halving.rungs and not await halving.survives_rung(f"run-{layer}", step):
                return step, "pruned"
        return 6, "completed"

    async def search():
        halving = SuccessiveHalvingBarrier(rungs, {f"run-{k}": k for k in range(4)}, choose)
        return await asyncio.wait_for(asyncio.gather(*(train(halving, k) for k in range(4))), 5)

    assert asyncio.run(search()) == [(2, "pruned"), (4, "pruned"), (6, "completed"), (1, "failed")]
    assert asked == [(2, [0, 1, 2]), (4, [1, 2])]


def test_a_resumed_search_takes_what_was_decided():
    """The first rung kept layers 1 and 2 before the sweep was stopped: run 0, which comes late, stops there, run 1
    passes, and the second rung waits for 1 and 2 alone."""

    async def choose(rung, layers):
        return [2]

    async def search():
        decided = {2: [1, 2]}
        halving = SuccessiveHalvingBarrier([Rung(2, 4, 2, 1), Rung(4, 2, 1, 1), Rung(6, 1, 1, 4)],
                          {f"run-{k}": k for k in range(4)}, choose, decided)  # fmt: skip
        assert halving.runs == {"run-1": 1, "run-2": 2}
        first = [await halving.survives_rung("run-0", 2), await halving.survives_rung("run-1", 2)]
        second = await asyncio.wait_for(asyncio.gather(*(halving.survives_rung(f"run-{k}", 4) for k in (1, 2))), 5)
        return first, second, decided

    assert asyncio.run(search()) == ([False, True], [False, True], {2: [1, 2], 4: [2]})


def test_a_decision_that_fails_keeps_no_run_waiting():
    async def choose(rung, layers):
        raise ValueError("no scores")

    async def search():
        halving = SuccessiveHalvingBarrier(
            [Rung(2, 3, 1, 1), Rung(6, 1, 1, 4)], {f"run-{k}": k for k in range(3)}, choose
        )
        calls = (halving.survives_rung(f"run-{k}", 2) for k in range(3))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)

    said = "the search could not decide after step 2: ValueError: no scores"
    assert [(type(error), str(error)) for error in asyncio.run(search())] == [(RungDecisionFailed, said)] * 3


TABLE = pd.DataFrame(
    {
        "kind": ["base", "full", *["layer"] * 5],
        "layer": [None, None, 0, 1, 2, 3, 4],
        "score": [0.1, 0.9, 0.3, 0.8, 0.7, None, 0.2],
        "status": ["completed"] * 5 + ["failed", "pruned"],
    }
)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"only": "best 2"}, Selection("layers-best-2", "layers", (1, 2))),
        ({"worst": 2}, Selection("layers-worst-2", "layers", (0, 2))),
        ({"only": "worst 2"}, Selection("layers-worst-2", "layers", (0, 2))),
        ({"middle": 2}, Selection("layers-middle-2", "layers", (2, 3))),
        ({"boost": "best 1"}, Selection("boost-best-1", "boost", (1,))),
    ],
)
def test_picks_from_a_table(run, expected):
    """Scores .3 .8 .7 of layers 0 to 2; layer 3 failed and layer 4 was stopped early, so neither is ranked."""
    assert pick(CombinedRun(**run), TABLE, layers=6) == expected


def test_boost_trains_everything_and_two_layers_train_themselves():
    boost, two = Selection.boost((1,), "boost-best-1"), Selection.several((0, 2))
    assert boost.trains("model.embed_tokens.weight") and boost.trains("model.layers.0.mlp.up_proj.weight")
    assert boost.names("model.layers.1.mlp.up_proj.weight") and not boost.names("model.layers.10.mlp.up_proj.weight")
    assert two.trains("model.layers.2.input_layernorm.weight") and not two.trains("model.layers.1.mlp.up_proj.weight")
    assert not two.trains("model.norm.weight")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"combine": [{"only": "best 7"}]}, "combine[0]: layers-best-7 needs 7 layer runs, the sweep has 6"),
        ({"combine": [{"only": "best 1", "middle": 2}]}, "give exactly one of only, boost, middle, worst"),
        ({"combine": [{"only": "finest 2"}]}, "combine[0].only"),
        ({"layers": {"search": {"budget": 0.1}}}, "layers.search: a budget of 0.1 is too small"),
        ({"layers": {"search": {"budgt": 0.1}}}, "search.budgt"),
        (
            {"combine": [{"only": "best 3"}], "layers": {"search": {"budget": 0.5}}},
            "combine[0]: layers-best-3 needs 3 layer runs, the sweep trains to the end 2",
        ),
        ({"combine": [{"worst": 1}], "layers": {"search": {"budget": 0.5}}}, "a search stops the worst layers before"),
        ({"combine": [{"only": "best 2"}], "profile": "/nowhere"}, "profile: there is no table at /nowhere"),
    ],
)
def test_bad_searches_and_combinations(changes, expected):
    with pytest.raises(SpecError) as error:
        make_plan(parse_spec(demo(**changes)))
    assert expected in str(error.value)


def test_a_search_is_planned(capsys):
    """6 layers, 30 steps, half the budget: 6 layers to step 3, 5 to 7, 3 to 13 and 2 to 30 are 18 + 20 + 18 + 34 = 90
    steps of layers. A batch is 32 x 8, all share the first one; on 512 x 4 the base is scored once, full at three
    rungs and the end, the layers at the rungs that they reach on twice as many, the two finalists on four times; at
    last they, base and full on 128 x 16. Of an exhaustive sweep seven runs of 30 steps are scored once, and the three
    best, base and full on 128 x 16: with runs this short a search takes more responses, not fewer."""
    plan = make_plan(parse_spec(demo(layers={"search": {"budget": 0.5}})))
    assert plan.evaluation_steps == {rung.step for rung in plan.rungs[:-1]} == {3, 7, 13}
    assert [plan.expected_steps(run) for run in plan.runs] == [30, *[90 / 6] * 6]
    assert plan.training_responses == 32 * 8 * (30 + 90 - 7 + 1)
    assert plan.evaluation_responses == 512 * 4 * (1 + 4 + 2 * (6 + 5 + 3) + 4 * 2) + 128 * 16 * 4
    show_plan(plan)
    shown = " ".join(capsys.readouterr().out.split())
    assert "layers: 6 to step 3, 5 to step 7, 3 to step 13, 2 to step 30; 90 of 180 layer steps (50%)" in shown
    searched, exhaustive = (256 * 114, 2048 * 41 + 2048 * 4), (256 * 204, 2048 * 8 + 2048 * 5)
    said = ["{:,} training and {:,} evaluation responses".format(*counts) for counts in (searched, exhaustive)]
    assert f"to generate {said[0]}; without the search {said[1]}" in shown


def test_combined_runs_are_planned(capsys):
    """Two runs of two layers, of 37,056 parameters each, and a boost: 3 runs more of 30 steps, which share the first
    batch, are scored like the others, and once more in the end."""
    alone = make_plan(parse_spec(demo()))
    plan = make_plan(parse_spec(demo(combine=[{"only": "best 2"}, {"worst": 2}, {"boost": "best 2"}])))
    assert [run.name for run in plan.combined] == ["layers-best-2-seed0", "layers-worst-2-seed0", "boost-best-2-seed0"]
    assert [plan.trainable_parameters(run.selection) for run in plan.combined] == [74_112, 74_112, 223_232]
    assert plan.training_responses - alone.training_responses == 32 * 8 * 3 * 29
    assert plan.evaluation_responses - alone.evaluation_responses == 3 * (512 * 4 + 128 * 16)
    show_plan(plan)
    assert "layers-worst-2 " in capsys.readouterr().out
