"""Kept responses: which are kept, what is printed of them, and the tables that come of scoring them once more."""

import asyncio
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from layersweep.cli import main
from layersweep.orchestrator.commands.rescore import rescore
from layersweep.orchestrator.commands.responses import find_responses
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.orchestrator.statistics.contribution_table import sweep_table
from layersweep.orchestrator.statistics.suite_table import suite_table
from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.demo_gridworld import GridWorldConfig
from layersweep.rollout.environments.episodes import Episode, EpisodeBatch, Turn
from layersweep.rollout.tasks.demo.sort_digits import SortDigits
from layersweep.rollout.types import Prompt, Score
from layersweep.workers.actors.collector import Collector
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.storage.responses import ResponseKeeper, kept_files, kept_prompts
from layersweep.workers.storage.table_schema import NUMBER
from layersweep.workers.storage.tables import CONTRIBUTION, SCORES, STEPS
from layersweep.workers.trackers.config import TrackingConfig
from tests.helpers.tables import run_facts
from tests.workers.actors.test_rollout_worker import Engine, tokenizer  # noqa: F401  a fixture

CONSTANTS = {"sweep": "s", "model": "tiny", "algorithm": "grpo", "task": "sort_digits",
             "learning_rate_policy": "given", "model_layers": 6}  # fmt: skip
RIGHT = {"base": (1, 2), "full": (4, 1), "layer-00": (2, 2), "layer-03": (3, 0)}
"""Right samples of 4 on suite four, and of 2 on suite five, which does not count."""
STEPS_TRAINED = 3


def spec(folder, **more):
    return load_spec({
        "name": "s", "output": str(folder), "model": {"type": "tiny"}, "task": {"type": "sort_digits"},
        "layers": [0, 3],
        "training": {"steps": STEPS_TRAINED, "max_response_tokens": 7, "prompts_per_step": 3, "group_size": 2},
        "evaluation": {"greedy": True, "suites": [
            {"name": "four", "task": {"type": "sort_digits", "digits": 4}, "prompts": 40, "samples": 4},
            {"name": "five", "task": {"type": "sort_digits", "digits": 5}, "prompts": 20, "samples": 2,
             "counts": False},
        ]},
    } | more)  # fmt: skip


def worker_of(plan, model, folder, keep="final", task=None):
    return RolloutWorker(
        ModelSource(str(model)), task or plan.task, [] if task else plan.evaluation.suites, plan.training, None,
        ResponseKeeper(str(folder), keep, frozenset({0, STEPS_TRAINED})),
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path, tokenizer):  # noqa: F811
    """The folder of a sweep whose responses a scripted engine has written; the actors are the real ones."""
    folder, plan = tmp_path / "s", spec(tmp_path)
    worker = worker_of(plan, tmp_path / "model", folder)
    runs = {name: None if name == "base" else f"{name}-seed0" for name in RIGHT}
    engine = Engine(tokenizer, {(runs[name], 4 + i): right[i] for name, right in RIGHT.items() for i in (0, 1)})
    table, by_suite = partial(sweep_table, CONSTANTS), partial(suite_table, "s")
    facts = [run_facts(name) for name in RIGHT]
    collector = Collector(str(folder), facts, table, by_suite, STEPS_TRAINED, "s", TrackingConfig())
    collector.next_write = float("inf")
    for name, run in runs.items():
        step = 0 if run is None else STEPS_TRAINED
        for suite in plan.evaluation.suites:
            for greedy in (False, True):
                asked = (engine, run, step, suite.name, "selection", 0, suite.samples, greedy)
                collector.record_scores(name, 0, step, asyncio.run(worker.evaluate(*asked)))
        if run is not None:
            row = {column.name: 0.5 if column.type == NUMBER else 9 for column in STEPS.columns[3:]}
            collector.commit(name, 0, 2, {}, [{"step": k} | row for k in range(2)], 1.5, 2)
        collector.update_run(name, 0, status="completed")
    collector.write()
    (folder / "sweep.yaml").write_text(write_yaml(plan.model_dump(mode="json")))
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_every_evaluated_response_opens_with_pandas_alone(sweep):
    found = pd.read_parquet(sweep / "responses")
    assert set(found["run"]) == {"base-seed0", "full-seed0", "layer-00-seed0", "layer-03-seed0"}
    assert set(found["step"]) == {0, 3}
    layer = found[(found["run"] == "layer-03-seed0") & (found["suite"] == "four")]
    assert len(layer) == 160 and layer["prompt"].nunique() == 40
    for row in layer.to_dict("records"):
        right = row["sample"] < 3
        assert row["question"] == row["prompt"] + "="
        assert row["response"] == ("".join(sorted(row["prompt"])) if right else "0")
        assert row["score"] == right and row["response_tokens"] == len(row["response"]) + 1
        assert row["answer"] == row["response"] if right else pd.isna(row["answer"])
    assert len(found) == 4 * (40 * 4 + 40 + 20 * 2 + 20)  # with the greedy answers


def test_the_same_grader_gives_the_same_tables_to_the_bit(sweep, capsys):
    before = files(sweep)
    assert main(["rescore", str(sweep)]) == 0
    assert "1,040 responses scored once more, 0 with another score" in capsys.readouterr().out
    assert files(sweep) == before
    again = files(sweep / "rescored")
    assert set(again) == {"contribution.parquet", "contribution_by_suite.parquet", "scores.parquet", "steps.parquet"}
    for name in again:
        assert again[name] == before[name], name
    assert main(["report", str(sweep / "rescored")]) == 0
    assert main(["compare", str(sweep), str(sweep / "rescored")]) == 0


def test_another_grader_gives_the_tables_of_its_scores(sweep, monkeypatch, capsys):
    """One that takes the first digit for enough: a lone 0 is right where the sorted digits begin with it."""

    def lenient(self, prompt, response):
        right, length = float(response.text[:1] == prompt.truth[:1]), float(len(response.text))
        return Score(right, True, answer=response.text, numbers={"length": length})

    monkeypatch.setattr(SortDigits, "_score", lenient)
    found = rescore(str(sweep))
    scores = SCORES.read(str(sweep / "scores.parquet"))
    zero = scores["prompt"].str.contains("0").astype(float)
    assert found.changed == int(((scores["score"] == 0) & (zero == 1)).sum()) > 0
    expected = scores.assign(score=np.maximum(scores["score"], zero), format_ok=True)
    expected["answer"] = expected["answer"].fillna("0")
    expected["reward.length"] = expected["response_tokens"] - 1.0
    pd.testing.assert_frame_equal(SCORES.read(f"{found.folder}/scores.parquet"), SCORES.frame(expected))
    runs = pd.DataFrame([run_facts(name) | {"status": "completed", "reason": None} for name in RIGHT])
    table = sweep_table(CONSTANTS, runs, STEPS.read(str(sweep / "steps.parquet")), expected)
    pd.testing.assert_frame_equal(found.after, table, check_exact=True)
    written = CONTRIBUTION.read(f"{found.folder}/contribution.parquet")
    assert written["score"].tolist() == table["score"].tolist()
    old = CONTRIBUTION.read(str(sweep / "contribution.parquet")).set_index("selection")["score"]
    assert (table.set_index("selection")["score"] >= old).all() and not table["score"].equals(
        old.reset_index()["score"]
    )


def test_a_field_of_the_task_may_be_given_and_nothing_else(sweep, capsys):
    assert main(["rescore", str(sweep), "training.steps=9"]) == 2
    assert "give fields of `task` and of suites' `task` alone" in capsys.readouterr().err
    assert main(["rescore", str(sweep), "evaluation.suites[0].task.digits=6"]) == 0  # every answer has 4
    assert CONTRIBUTION.read(str(sweep / "rescored" / "contribution.parquet"))["format_fraction"].eq(0).all()


def test_scores_whose_responses_were_not_kept_are_left_out_and_counted(sweep, capsys):
    (sweep / "responses" / "run=layer-03-seed0" / "step=000003" / "selection.five.parquet").unlink()
    assert main(["rescore", str(sweep)]) == 0
    assert "left out are 40 scores whose responses were not kept" in capsys.readouterr().out
    by_suite = pd.read_parquet(sweep / "rescored" / "contribution_by_suite.parquet")
    assert "layer-03" not in set(by_suite.loc[by_suite["suite"] == "five", "selection"])


@pytest.mark.parametrize(
    ("remove", "words"),
    [("responses", "no evaluated responses are kept"), ("checkpoints/prompts", "its prompts were not kept"),
     ("contribution.parquet", "no such file"), ("checkpoints/base-seed0", "nothing is known there of base")],
)  # fmt: skip
def test_what_rescore_refuses(sweep, capsys, remove, words):
    (sweep / remove).rename(sweep / "elsewhere")
    assert main(["rescore", str(sweep)]) == 2
    assert words in capsys.readouterr().err


def test_an_environment_is_not_rescored(sweep, capsys):
    (sweep / "sweep.yaml").write_text(
        write_yaml(spec(sweep.parent, task={"type": "gridworld"}, evaluation={}).model_dump(mode="json"))
    )
    assert main(["rescore", str(sweep)]) == 2
    assert "an environment scores episodes while they are played" in capsys.readouterr().err


def test_responses_are_printed_run_by_run(sweep, capsys):
    assert main(["responses", str(sweep), "--run", "layer-03", "--run", "base", "--suite", "four", "-n", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("--- selection, four, prompt ") == 2
    prompt = min(find_responses(str(sweep), ["base"], suite="four")["prompt"])
    block = printed.partition("\n--- ")[0].splitlines()
    right = "".join(sorted(prompt))
    assert block[:4] == [
        f"--- selection, four, prompt {prompt}",
        f"{prompt}=",
        f"[layer-03 seed 0, step 3, sample 0]  right (1.00)  answer {right}  5 tokens",
        right,
    ]
    assert block[8:10] == ["[layer-03 seed 0, step 3, sample 3]  wrong (0.00)  no answer  2 tokens", "0"]
    assert block[10].startswith("[base seed 0, step 0, sample 0]  right")
    assert "320 of 320 responses, to 40 prompts; shown are the first 2 prompts" in printed


def test_only_wrong_ones(sweep, capsys):
    assert main(["responses", str(sweep), "--run", "layer-03", "--wrong", "--suite", "four"]) == 0
    printed = capsys.readouterr().out
    assert "40 of 160 responses, to 40 prompts" in printed and "right (" not in printed
    assert main(["responses", str(sweep), "--run", "layer-04"]) == 2
    assert "layer-04: no responses of it are kept; there are base, full, layer-00, layer-03" in capsys.readouterr().err
    assert main(["responses", str(sweep), "--run", "layer-03", "--split", "train"]) == 2
    there = "there are --split selection; --suite five, five@greedy, four, four@greedy; --seed 0; --step 3 "
    assert there in capsys.readouterr().err
    assert main(["responses", str(sweep), "--suite", "six"]) == 2
    assert main(["responses", str(sweep.parent)]) == 2
    assert "no responses are kept there" in capsys.readouterr().err


def test_the_last_evaluation_is_shown_unless_another_is_named(sweep):
    run = sweep / "responses" / "run=layer-03-seed0"
    shutil.copytree(run / "step=000003", run / "step=000002")
    for step, shown in ((None, 3), (2, 2), (3, 3)):
        found = find_responses(str(sweep), ["layer-03-seed0"], step=step)
        assert set(found["step"]) == {shown} and len(found) == 40 * 4 + 40 + 20 * 2 + 20
    assert set(find_responses(str(sweep), ["base"], split="selection")["selection"]) == {"base"}


@pytest.mark.parametrize(
    ("keep", "evaluated", "trained", "prompts"),
    [("none", [], False, 0), ("final", [0, 3], False, 40), ("all", [0, 2, 3], True, 40),
     ("sample:5", [0, 2, 3], True, 5)],
)  # fmt: skip
def test_what_is_kept(tmp_path, tokenizer, keep, evaluated, trained, prompts):  # noqa: F811
    """Evaluations of the base and after 2 and 3 steps, and the training batches of the first and the third step."""
    plan, folder = spec(tmp_path, responses=keep), tmp_path / "kept"
    worker = worker_of(plan, tmp_path / "model", folder, plan.responses)
    engine = Engine(tokenizer, {(run, n): 1 for run in (None, "layer-03-seed0") for n in (4, 6)})
    for run, version in ((None, 0), ("layer-03-seed0", 2), ("layer-03-seed0", 3)):
        asyncio.run(worker.evaluate(engine, run, version, "four", "selection", 0, 4))
    asyncio.run(worker.experience(engine, None, 0, 0, 0))
    asyncio.run(worker.experience(engine, "layer-03-seed0", 2, 0, 2))
    found = list(kept_files(str(folder)))
    assert [file.step for file in found if file.split == "selection"] == evaluated
    assert [(file.run, file.step, file.suite) for file in found if file.split == "train"] == (
        [("base-seed0", 0, None), ("layer-03-seed0", 2, None)] if trained else []
    )
    chosen = [set(file.read()["prompt"]) for file in found if file.suite]
    assert all(len(names) == prompts and names == chosen[0] for names in chosen)
    if trained:
        _, batch = [file.read() for file in found if file.split == "train"]
        assert len(batch) == 6 and batch["score"].tolist() == [1.0, 0.0] * 3


def test_a_disk_that_takes_nothing_costs_no_evaluation(tmp_path, tokenizer, caplog):  # noqa: F811
    (tmp_path / "full").write_text("not a folder")
    worker = worker_of(spec(tmp_path), tmp_path / "model", tmp_path / "full")
    columns = asyncio.run(worker.evaluate(Engine(tokenizer, {(None, 4): 4}), None, 0, "four", "selection", 0, 4))
    assert len(columns["score"]) == 160 and "responses of the base at step 0 are not kept" in caplog.text


def test_prompts_of_a_chat_come_back_as_they_were(tmp_path):
    keeper = ResponseKeeper(str(tmp_path), "all", frozenset())
    asked = [
        Prompt("a", text="1+1=", truth=["2"], info={"level": 3}),
        Prompt("b", messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}),
               truth={"functions": ["f"], "tests": [1.5, None]}),
    ]  # fmt: skip
    keeper.write_prompts("final", "a.b-c", asked)
    assert list(kept_prompts(str(tmp_path), "final", "a.b-c").values()) == asked
    assert kept_prompts(str(tmp_path), "selection", "a.b-c") is None


def test_episodes_are_kept_as_their_turns():
    task = GridWorldConfig(turn_template="{observation}\n> {action}\n")
    empty = np.empty(0, np.int32)
    turns = [
        Turn("", text, empty, empty, empty, True, "", action) for text, action in (("a wall", "left"), ("a door", None))
    ]
    batch = EpisodeBatch([Episode(InitialState("7", 7), 0, 0, turns)])
    assert batch.texts(task) == ["a wall\n> left\na door\n> \n"]
