"""What runs are taken apart into, and what stacks are made of; whole dissections are in tests/end_to_end."""

import asyncio

import pandas as pd
import pytest

from layersweep.cli import DEMO, main
from layersweep.orchestrator.commands import compose, dissect
from layersweep.orchestrator.commands.compose import Stack, composition_table
from layersweep.orchestrator.commands.dissect import dissection_table, pieces_of
from layersweep.orchestrator.commands.finished_sweep import open_sweep
from layersweep.orchestrator.execution.actors import run_metadata
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.policies.selection import LowRank, Selection
from layersweep.workers.storage.run_store import RunStore
from layersweep.workers.storage.tables import COMPOSITION, CONTRIBUTION, DISSECTION
from tests.orchestrator.planning.test_selections import SHAPE

EVERY = ["rank-1", "rank-4", "largest-0.1", "largest-0.3", "x0.5", "x1.5", "x2", "random"]
PARTS = ["attention", "mlp", "norms"]


@pytest.mark.parametrize(
    ("selection", "labels"),
    [
        (Selection.layer(2), PARTS + EVERY),
        (Selection.part((2,), "mlp"), EVERY),
        (Selection.part((2,), None, LowRank(8, 8.0)), ["attention", "mlp", *EVERY]),
        (Selection.several((0, 2)), [*PARTS, "only-00", "only-02", "without-00", "without-02", *EVERY]),
        (Selection.full(), [*PARTS, *(f"{how}-{k:02d}" for how in ("only", "without") for k in range(3)), *EVERY]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_pieces(selection, labels):
    pieces = pieces_of(selection, 3)
    assert sorted(piece.variant.name for piece in pieces) == sorted(f"{selection.name}.{label}" for label in labels)
    assert {change.selection for piece in pieces for change in piece.variant.changes} == {selection.name}


def test_the_parts_of_the_full_run_are_those_of_all_layers():
    pieces = {piece.variant.name: piece.variant.changes[0] for piece in pieces_of(Selection.full(), 3)}
    assert pieces["full.mlp"].keep.trains("model.layers.2.mlp.up_proj.weight")
    assert not pieces["full.mlp"].keep.trains("model.embed_tokens.weight")
    assert pieces["full.without-01"].leave_out == pieces["full.only-01"].keep == Selection.layer(1)
    assert pieces["full.x1.5"].strength == 1.5


def test_a_stack_s_name_does_not_depend_on_the_order_of_its_members():
    one, other = (
        Stack(members, 1.0, "given", "selection") for members in (("layer-05", "layer-01"), ("layer-01", "layer-05"))
    )
    assert one.name == other.name == "stack-01-05" and one.variant == other.variant
    assert Stack(("layer-01", "layer-02-mlp"), 0.5, "given", "selection").name == "stack-01-02-mlp-x0.5"


@pytest.fixture
def finished(tmp_path):
    """A sweep's folder with full and layers 1 and 4 completed, layer 2 failed, layer 3 without its weights."""
    folder = tmp_path / "demo"
    states = {"base": "completed", "full": "completed", "layer-01": "completed", "layer-02": "failed",
              "layer-03": "completed", "layer-04": "completed"}  # fmt: skip
    rows = [
        {"selection": name, "kind": name.partition("-")[0], "layer": int(name[-2:]) if "-" in name else None,
         "layers": [int(name[-2:])] if "-" in name else [], "model_layers": 6, "status": status, "score": score}
        for (name, status), score in zip(states.items(), (0.1, 0.6, 0.3, None, 0.5, 0.4), strict=True)
    ]  # fmt: skip
    for name in ("full", "layer-01", "layer-02", "layer-04"):
        (folder / "overlays" / f"{name}-seed0").mkdir(parents=True)
        (folder / "overlays" / f"{name}-seed0" / "model.safetensors").touch()
    with (folder / "contribution.parquet").open("wb") as file:
        CONTRIBUTION.write(CONTRIBUTION.frame(rows), file)
    spec = load_spec(DEMO, {"output": "elsewhere"})
    (folder / "sweep.yaml").write_text(write_yaml(spec.model_dump(mode="json")))
    return folder


def test_completed_runs_with_their_weights_are_found(finished):
    found = open_sweep(str(finished))
    assert found.selections == {
        "full": Selection.full(),
        "layer-01": Selection.layer(1),
        "layer-04": Selection.layer(4),
    }
    assert (found.folder, found.spec.folder, found.layers) == (str(finished), str(finished), 6)
    assert found.order(["layer-01", "layer-04"]) == ["layer-04", "layer-01"]


@pytest.mark.parametrize(
    "selection",
    [
        Selection.part((2, 4), "mlp", LowRank(8, 16.0)),
        Selection.part((1,), None, LowRank(4, 4.0)),
        Selection.part((2,), "attention"),
        Selection.several((0, 5)),
    ],
    ids=lambda selection: selection.name,
)
def test_a_selection_is_found_again_by_its_row(finished, selection):
    facts = run_metadata(Plan(load_spec(DEMO), SHAPE, ()), Run(selection, 0))
    table = CONTRIBUTION.read(str(finished / "contribution.parquet"))
    row = {name: value for name, value in facts.items() if name != "seed"} | {"status": "completed", "score": 0.5}
    (finished / "overlays" / f"{selection.name}-seed0").mkdir()
    (finished / "overlays" / f"{selection.name}-seed0" / "model.safetensors").touch()
    with (finished / "contribution.parquet").open("wb") as file:
        CONTRIBUTION.write(pd.concat([table, CONTRIBUTION.frame([row])]), file)
    assert open_sweep(str(finished)).selections[selection.name] == selection


def test_a_sweep_s_folder_that_was_renamed_is_refused(finished, capsys):
    renamed = finished.rename(finished.parent / "copy")
    assert main(["dissect", str(renamed)]) == 2
    assert f"the sweep in {renamed} is 'demo' by its spec; name the folder so too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["dissect", "{}", "layer-02"], "layer-02: no completed run of"),
        (["dissect", "{}", "training.stepz=3"], "training.stepz: unknown key"),
        (["dissect", "{}/nowhere"], "no such file"),
        (["compose", "{}"], "compose: name stacks such as 1+5"),
        (["compose", "{}", "1+2"], "layer-02: no completed run of"),
        (["compose", "{}", "1+1"], "layer-01+layer-01: names a run twice"),
        (["compose", "{}", "--greedy", "2", "evaluation.suites[0].final_prompts=0"], "this sweep has no final_prompts"),
    ],
)
def test_what_cannot_be_taken_apart_or_put_together_is_refused(finished, capsys, words, problem):
    """Before anything starts: exit code 2, the reason, no folder of variants."""
    assert main([word.format(finished) for word in words]) == 2
    assert problem in capsys.readouterr().err
    assert not (finished / "variants").exists()


def responses(split: str = "selection", **means: float) -> pd.DataFrame:
    """Four prompts of one sample each, around the mean of each selection."""
    rows = [
        {"selection": name, "seed": 0, "step": 0 if name == "base" else 30, "suite": "s", "split": split,
         "prompt": f"p{i}", "sample": 0, "score": mean + wobble, "response_tokens": 3, "truncated": False,
         "format_ok": True}
        for name, mean in means.items()
        for i, wobble in enumerate((-0.01, 0.01, 0.02, -0.02))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_table_of_a_dissection(finished, capsys):
    """C of the MLP (.2 - .1) / (.6 - .1), kept (.2 - .1) / (.3 - .1); the run itself comes first and keeps all."""
    found = open_sweep(str(finished))
    facts = {"selection": "layer-01.mlp", "seed": 0, "change_norm": 2.5, "changed_parameters": 7}
    RunStore(f"{finished}/variants", "layer-01.mlp-seed0").write_metadata(facts)
    pieces = [piece for piece in pieces_of(found.selections["layer-01"], 6) if piece.part == "mlp"]
    scores = responses(**{"base": 0.1, "full": 0.6, "layer-01": 0.3, "layer-01.mlp": 0.2})
    rows = dissection_table(found, pieces, scores)
    assert list(rows["change"]) == ["whole", "part"]
    assert rows["contribution"].tolist() == pytest.approx([0.4, 0.2])
    assert rows["kept"].tolist() == pytest.approx([1.0, 0.5])
    assert rows.loc[1, ["change_norm", "changed_parameters"]].tolist() == [2.5, 7]
    dissect._show(rows)
    assert "layer-01  │ whole  │" in (printed := capsys.readouterr().out) and "│ part   │ mlp │" in printed
    for written in (rows, rows[:1].assign(score=0.9), rows[1:]):  # rows of the same variant are replaced, others stay
        found.write(DISSECTION, written, ["variant"])
    kept = DISSECTION.read(f"{finished}/dissection.parquet").set_index("variant")["score"]
    assert kept.to_dict() == {"layer-01": 0.9, "layer-01.mlp": 0.2}
    assert DISSECTION.read(f"{finished}/dissection.parquet")["part"].isna().sum() == 1


def test_the_table_of_stacks(finished, capsys):
    """Each split by itself: C (.5 - .1) / .5 on the selection split, (.7 - .2) / .5 on the final one."""
    found = open_sweep(str(finished))
    pair = ("layer-01", "layer-04")
    stacks = [Stack(pair, 1.0, "pair", "selection"), Stack(pair, 1.0, "greedy", "final")]
    scores = pd.concat([
        responses(**{"base": 0.1, "full": 0.6, "stack-01-04": 0.5}),
        responses("final", **{"base": 0.2, "full": 0.7, "stack-01-04": 0.7}),
    ])  # fmt: skip
    rows = composition_table(found, stacks, scores)
    assert rows["contribution"].tolist() == pytest.approx([0.8, 1.0])
    assert rows["split"].tolist() == ["selection", "final"] and rows["size"].tolist() == [2, 2]
    compose._show(rows)
    assert "stack-01-04" in capsys.readouterr().out
    found.write(COMPOSITION, rows, ["stack", "rule", "split"])
    assert [list(members) for members in COMPOSITION.read(f"{finished}/composition.parquet")["members"]] == [
        [*pair]
    ] * 2


def test_greedy_stacks_are_chosen_on_one_split_and_scored_on_the_other(finished):
    """Layer 4 alone is best, then with 1; every run alone and every pair with it is tried on the selection split,
    and what is to be reported is on the final one. A part of layer 1 overlaps with it, and is never stacked on it."""
    found = open_sweep(str(finished))
    part = Selection.part((1,), "mlp")
    found.selections[part.name] = part
    row = found.table.iloc[-1].to_dict() | {"selection": part.name, "kind": "part", "score": 0.35}
    found.table.loc[len(found.table)] = row
    means = {"stack-01": 0.3, "stack-04": 0.4, "stack-01-mlp": 0.35, "stack-01-04": 0.55, "stack-01-mlp-04": 0.5}
    asked = []

    class Scorer:
        async def score(self, variants, seeds, split="selection"):
            asked.append((split, sorted(variant.name for variant in variants)))
            return responses(split, base=0.1, full=0.6, **{v.name: means[v.name] for v in variants})

    runs = tuple(Run(selection, 0) for selection in found.selections.values())
    plan = Plan(found.spec, SHAPE, runs)
    grown = asyncio.run(compose._greedy(Scorer(), plan, found, 3, 1.0))
    assert [(stack.members, stack.rule, stack.split) for stack in grown] == [
        (("layer-04",), "greedy", "final"), (("layer-04", "layer-01"), "greedy", "final"),
    ]  # fmt: skip
    assert asked == [("selection", ["stack-01", "stack-01-mlp", "stack-04"]),
                     ("selection", ["stack-01-04", "stack-01-mlp-04"])]  # fmt: skip
    wanted = compose.Wanted(best=9, pairs=3, greedy=3)
    assert compose.fewer_than_wanted(wanted, grown + compose._planned(found, plan, wanted)) == [
        "--best 9: only 2 completed runs of this sweep can be added up",
        "--greedy 3: only 2 completed runs of this sweep can be added up",
    ]
    pairs = compose._planned(found, plan, compose.Wanted(pairs=3, best=2))
    assert {(stack.rule, stack.name, stack.split) for stack in pairs} == {
        ("pair", "stack-01-04", "selection"), ("pair", "stack-01-mlp-04", "selection"),
        ("best", "stack-04", "final"), ("best", "stack-01-mlp-04", "final"),
    }  # fmt: skip
