"""`layersweep data`: counts by split, lengths in tokens, prompts with special tokens, rewards of right answers."""

import json
import re

import pytest
import yaml

from layersweep.cli import DEMO, main
from tests.helpers.model_folders import make

TEMPLATE = "{% for m in messages %}What {{ m.content }}<end>{% endfor %}"
REWARD = """
def score(solution_str, ground_truth):
    if ground_truth == "12":
        raise ValueError("no dozens")
    return 0.5 if ground_truth == "2" else float(solution_str == "#### " + ground_truth)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten sums, one of them twice, and two answers to one question; a model whose template ends messages by <end>."""
    rows = [{"question": f"is {i} + {i}?", "answer": str(2 * i)} for i in (*range(10), 3)]
    rows += [{"question": "is 8 + 0?", "answer": answer} for answer in ("8", "7")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards.py").write_text(REWARD)
    make(tmp_path / "model", template=TEMPLATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(folder, capsys, task, **changes) -> str:
    data = {"path": "rows.jsonl", "selection_share": 0.0, "final_share": 0.0}
    suite = {"name": "sums", "prompts": 4, "task": {"type": "math", "data": data | {"selection_share": 1.0}}}
    spec = {
        "name": "a", "model": "model", "task": {"data": data, **task}, "evaluation": {"suites": [suite]},
        "training": {"prompts_per_step": 1, "max_response_tokens": 8}, "output": str(folder / "runs"),
    } | changes  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    assert main(["data", "sweep.yaml"]) == 0
    assert not (folder / "runs").exists()
    return capsys.readouterr().out


def test_counts_tokens_prompts_and_right_answers(folder, capsys):
    """Training asks what the suite asks, so all of it is dropped but for what a limit of words keeps: none is, with
    decontamination off. A question of 9 characters is `What is 0 + 0?<end>`, 15 tokens."""
    data = {"path": "rows.jsonl", "selection_share": 0.0, "final_share": 0.0, "decontaminate_ngram": None}
    said = shown(folder, capsys, {"type": "prompts", "reward": "rewards.py:score", "data": data})
    lines = [line.strip() for line in said.splitlines()]
    assert lines[0] == "training: prompts"
    assert lines[1] == "rows  13 rows (1 duplicate, 2 contradicting dropped): 10 train, 0 selection, 0 final"
    assert re.fullmatch(r"train  10 prompts; tokens 15 to 15, median 15, the longest is row \d+", lines[2])
    assert lines[3].startswith("right answers  8 of 10 get reward 1 after ####; below it: row ")
    assert "row 2 (0.5)" in lines[3] and "row 7 (0, failed)" in lines[3]
    assert re.fullmatch(r"-- row \d+, 15 tokens --", lines[4])
    assert re.fullmatch(r"\| What is (\d) \+ \1\?<end>", lines[5])
    assert sum(line.startswith("-- row") for line in lines) == 6  # three of each section
    assert "suite sums: math" in lines
    assert "right answers  10 of 10 get reward 1 as they stand" in lines
    assert sum("rewards.py:score failed on 1 of 10" in line for line in lines) == 1 and "ValueError: no dozens" in said


def test_rows_without_answers_are_told(folder, capsys):
    """A reward may do without; where its answers have another name, that is the place to see it."""
    (folder / "rows.jsonl").write_text('{"question": "is 1 + 1?", "label": "2"}\n')
    (folder / "rewards.py").write_text("def score(solution_str, ground_truth): return 1.0")
    data = {"path": "rows.jsonl", "selection_share": 0.0, "final_share": 0.0}
    suite = {"name": "own", "prompts": 1, "task": {"type": "prompts", "reward": "rewards.py:score",
                                                   "data": data | {"selection_share": 1.0}}}  # fmt: skip
    task = {"type": "prompts", "reward": "rewards.py:score", "data": data | {"decontaminate_ngram": None}}
    said = shown(folder, capsys, task, evaluation={"suites": [suite]})
    assert said.count("right answers  none of the rows has one; data.columns.answer names its column") == 2


def test_generated_prompts_and_a_tiny_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", DEMO, f"output={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "train  32 prompts, generated; tokens 7 to 7, median 7, the longest is prompt" in said
    assert "selection  256 prompts" in said and "final  64 prompts" in said
    assert "right answers  32 of 32 get reward 1 as they stand" in said
    assert len(re.findall(r"\| \d{6}=", said)) == 3


def test_programs_that_rows_bring(folder, capsys):
    """Of two rows one brings a program, which passes its test; of rows without any that is said."""
    rows = [{"question": f"Print {i}.", "input_output": {"inputs": [""], "outputs": [str(i)]}} for i in (1, 2)]
    rows[0]["solutions"] = ["print(1)"]
    for some, fact in ((rows, "1 of 1 get reward 1 as they stand"), (rows[1:], "none of the rows brings a program")):
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        data = {"path": "rows.jsonl", "selection_share": 0.0, "final_share": 0.0, "decontaminate_ngram": None}
        suite = {"name": "sums", "prompts": 1, "task": {"type": "code", "data": data | {"selection_share": 1.0}}}
        said = shown(folder, capsys, {"type": "code", "data": data}, evaluation={"suites": [suite]})
        assert said.count(f"right answers  {fact}") == 2


def test_data_that_cannot_be_read(folder, capsys):
    assert main(["data", DEMO, "task={type: math, data: {path: nowhere.csv}}", "model=model"]) == 2
    assert "task: data.path: " in capsys.readouterr().err


def test_the_first_prompts_of_an_environment(folder, capsys):
    """`What is 7?<end>` where the seed ends in 7, and so on: 10 characters and the end."""
    (folder / "world.py").write_text(
        "class World:\n    def reset(self, seed): return f'is {seed % 10}?'\n"
        "    def step(self, text): return '', 0.0, True, False, {}\n"
    )
    task = {"type": "environment", "path": "world.py:World", "chat": True}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "a", "model": "model", "task": task}))
    changes = ["training.prompts_per_step=4", "training.max_response_tokens=8", f"output={folder}/runs"]
    assert main(["data", "sweep.yaml", *changes]) == 0
    said = capsys.readouterr().out
    assert "training: environment" in said
    starts = re.findall(r"-- start state (\d+), 11 tokens --\n    \| What is (\d)\?<end>\n", said)
    assert len(starts) == 3 and all(seed[-1] == digit for seed, digit in starts)


def test_every_bad_row_is_listed_and_the_rest_shown(folder, capsys):
    """Of a folder of two files: seven rows without an answer, by file, row and the row's own id where it has one; two
    good ones. `plan` names five of the seven, `data` all, and both refuse; with `bad_rows: skip` nobody does."""
    (folder / "rows").mkdir()
    good = [{"question": f"is {i}?", "answer": str(i)} for i in (1, 2)]
    bad = [{"ID": f"sum-{i}", "question": f"is {i}?", "answer": " "} for i in range(10, 16)]
    for name, rows in (("a.jsonl", [good[0], *bad]), ("b.jsonl", [{"question": "is 3?"}, good[1]])):
        (folder / "rows" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": "rows", "selection_share": 0.0, "final_share": 0.0, "decontaminate_ngram": None}
    suite = {"name": "sums", "prompts": 1, "task": {"type": "math", "data": data | {"selection_share": 1.0}}}
    spec = {
        "name": "a", "model": "model", "task": {"type": "math", "data": data}, "evaluation": {"suites": [suite]},
        "training": {"prompts_per_step": 1, "max_response_tokens": 8}, "output": str(folder / "runs"),
    }  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))

    assert main(["plan", "sweep.yaml"]) == 2
    refused = capsys.readouterr().err
    assert "task: data: 7 of 9 rows are bad: a.jsonl row 2, a.jsonl row 3," in refused
    assert "data.bad_rows: skip; `layersweep data` lists all of them" in refused and "row 7" not in refused

    assert main(["data", "sweep.yaml"]) == 2
    said = capsys.readouterr()
    listed = [f'a.jsonl row {row} (ID "sum-{row + 8}"): the answer is empty' for row in range(2, 8)]
    none = "no answer, neither reward_model.ground_truth nor a column 'answer' (see data.columns); there are: question"
    listed += [f"b.jsonl row 1: {none}"]
    lines = [line.strip() for line in said.out.splitlines()]
    at = lines.index("bad rows  7:")
    assert lines[at + 1 : at + 8] == listed
    assert "right answers  2 of 2 get reward 1 as they stand" in lines
    assert [problem.partition(": 7 bad rows, listed above; fix them")[0] for problem in said.err.splitlines()[-2:]] == [
        "layersweep: task.data", "layersweep: evaluation.suites[0].task.data",
    ]  # fmt: skip

    for task in (spec["task"], suite["task"]):
        task["data"]["bad_rows"] = "skip"
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    assert main(["data", "sweep.yaml"]) == 0
    assert capsys.readouterr().out == said.out


def test_ids_of_bad_rows_in_parquet(folder, capsys):
    """The column of ids is read for the list, and a row whose id alone is odd is none of it."""
    import pandas as pd

    rows = {"idx": [7, 8, 9], "question": ["is 1?", "", "is 2?"], "answer": ["1", "2", "3"]}
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    data = {"path": "rows.parquet", "selection_share": 0.0, "final_share": 0.0, "bad_rows": "skip"}
    data |= {"decontaminate_ngram": None}
    said = shown(folder, capsys, {"type": "math", "data": data})
    assert "    row 2 (idx 8): question is empty\n" in said
