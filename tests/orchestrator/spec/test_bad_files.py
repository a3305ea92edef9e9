"""Files that a spec names or a command is given, and that are not what they should be: tables, data, models, folders of
sweeps. Exit code 2, a field, a reason, nothing written."""

import copy
import json
import math
import os
import random
import re
from collections.abc import Iterator

import pandas as pd
import pytest
import yaml

from layersweep.cli import main
from tests.orchestrator.spec.test_bad_input import SPEC, outcome, within


def odd_tables(folder) -> Iterator[str]:
    """Parquet files that are no contribution table, or hold something odd in one column."""
    good = pd.DataFrame({
        "selection": ["base", "full", "layer-00", "layer-01"], "kind": ["base", "full", "layer", "layer"],
        "layer": [None, None, 0, 1], "depth": [None, None, 0.0, 1.0], "score": [0.1, 0.6, 0.3, 0.4],
        "contribution": [0.0, 1.0, 0.4, 0.6], "seeds": [1, 1, 1, 1], "status": ["completed"] * 4,
    })  # fmt: skip
    tables = {name: good.drop(columns=name) for name in ("selection", "kind", "score", "status")}
    for name in ("selection", "kind", "status"):
        for what, value in {"number": 3, "null": None, "bytes": [b"\xff"] * 4, "list": [[1, 2]] * 4}.items():
            tables[f"{name}-{what}"] = good.assign(**{name: value})
    for name in ("layer", "depth", "score", "contribution", "seeds"):
        tables |= {f"{name}-text": good.assign(**{name: "x"}), f"{name}-list": good.assign(**{name: [[1.0, 2.0]] * 4}),
                   f"{name}-mapping": good.assign(**{name: [{"a": 1}] * 4})}  # fmt: skip
    for name in ("layer", "seeds"):
        tables |= {f"{name}{x}": good.assign(**{name: [x] * 4}) for x in (-1.0, 0.5, 1e300, math.inf)}
    tables |= {"twice": pd.concat([good, good]), "empty": pd.DataFrame(), "other": pd.DataFrame({"a": [1]})}
    tables["another-model"] = good.assign(layer=[None, None, 6, 7])
    tables["no-rows"] = good.iloc[:0]
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
        yield f"{name}.parquet"
    content = (folder / "no-rows.parquet").read_bytes()
    for name, broken in {"cut": content[:-9], "text": b"selection,kind", "nothing": b"", "magic": b"PAR1"}.items():
        (folder / f"{name}.parquet").write_bytes(broken)
        yield f"{name}.parquet"
    (folder / "folder.parquet").mkdir()
    yield "folder.parquet"


def test_odd_tables_are_refused_as_a_profile_and_by_report(tmp_path, capsys):
    names = list(odd_tables(tmp_path))
    assert len(names) >= 40
    for name in names:
        path = str(tmp_path / name)
        assert main(["plan", f"profile={path}", "combine=[{only: best 2}]", f"output={tmp_path}/out"]) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(("layersweep: profile: ", "layersweep: combine: ")), line
        if name not in ("no-rows.parquet", "another-model.parquet"):
            assert main(["report", path]) == 2, name
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"layersweep: {path}: "), line
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


GOOD = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(60)]


def bad_files(folder):
    """Fifty files that hold something else than questions and answers; name and what the refusal must name."""
    rng = random.Random(0)
    lines = [json.dumps(row) for row in GOOD]
    rows = [
        {}, {"question": "q"}, {"answer": "1"}, {"question": None, "answer": "1"}, {"question": 3, "answer": "1"},
        {"question": "", "answer": "1"}, {"question": "q", "answer": None}, {"question": ["q"], "answer": "1"},
        {"question": "x" * 2_000_000, "answer": "1"}, {"prompt": [], "answer": "1"}, {"prompt": [{}], "answer": "1"},
        {"prompt": [{"role": "user"}], "answer": "1"}, {"prompt": [{"role": 1, "content": "x"}], "answer": "1"},
        {"prompt": "text", "reward_model": 5}, {"question": "\ud800", "answer": "1"}, [], 7, "text", None, True,
        {"question": {"a": 1}, "answer": "1"},
    ]  # fmt: skip
    for i, row in enumerate(rows):
        at = rng.randrange(len(lines))
        path = folder / f"row-{i}.jsonl"
        path.write_text("\n".join([*lines[:at], json.dumps(row), *lines[at:]]))
        yield path, at + 1
    for i in range(14):
        at = rng.randrange(len(lines))
        path = folder / f"cut-{i}.jsonl"
        path.write_text("\n".join([*lines[:at], lines[at][: rng.randrange(1, len(lines[at]) - 1)], *lines[at + 1 :]]))
        yield path, at + 1
    whole = folder / "whole.parquet"
    pd.DataFrame(GOOD).to_parquet(whole)
    content = whole.read_bytes()
    for i in range(8):
        path = folder / f"cut-{i}.parquet"
        path.write_bytes(content[: rng.randrange(len(content) - 1)])
        yield path, None
    for name, frame in {"no-answer": pd.DataFrame({"question": ["a"]}), "empty": pd.DataFrame(),
                        "no-rows": pd.DataFrame({"question": [], "answer": []})}.items():  # fmt: skip
        path = folder / f"{name}.parquet"
        frame.to_parquet(path)
        yield path, 1 if name == "no-answer" else None
    for name, text in {"empty.jsonl": b"", "binary.jsonl": bytes(range(256)), "data.pkl": b"\x80\x04.",
                       "list.json": b"{"}.items():  # fmt: skip
        path = folder / name
        path.write_bytes(text)
        yield path, None
    yield folder / "is-not-there.jsonl", None


def test_bad_data_files_are_refused_by_row_number(tmp_path, capsys):
    found = list(bad_files(tmp_path))
    assert len(found) >= 50
    for path, row in found:
        spec = copy.deepcopy(SPEC) | {
            "output": str(tmp_path / "out"),
            "model": "Qwen/Qwen3-1.7B-Base",
            "task": {"type": "math", "data": {"path": str(path), "prompt_format": "plain"}},
        }
        spec["training"]["prompts_per_step"] = 2
        spec["evaluation"] = {"suites": [{"name": "m", "prompts": 1}]}
        file = tmp_path / "spec.yaml"
        file.write_text(yaml.safe_dump(spec))
        code, lines = outcome(capsys, file)
        assert code == 2 and lines, path
        assert all(line.startswith("layersweep: ") for line in lines), lines
        assert any("data" in line for line in lines), (path, lines)
        if row is not None:
            assert any(re.search(rf"\b{row}\b", line) for line in lines), (path, row, lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", ["none", "no config", "not json", "a list", "no layers", "unknown", "pickle only"])
def test_bad_model_folders_are_refused(tmp_path, capsys, harm):
    folder = tmp_path / "model"
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 64,
              "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
              "vocab_size": 32}  # fmt: skip
    if harm != "none":
        folder.mkdir()
        text = {"not json": "{", "a list": "[]"}.get(harm)
        if harm == "no layers":
            del config["num_hidden_layers"]
        if harm == "unknown":
            config["architectures"] = ["MambaForCausalLM"]
        if harm != "no config":
            (folder / "config.json").write_text(text or json.dumps(config))
        if harm == "pickle only":
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC | {"model": str(folder), "output": str(tmp_path / "out")}))
    code, lines = outcome(capsys, path, "run")
    assert code == 2 and lines and all(line.startswith("layersweep: model") for line in lines), lines
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "name: x", "name: x\ntraining: 3"])
def test_a_sweep_folder_whose_spec_is_damaged(tmp_path, capsys, text):
    (tmp_path / "sweep.yaml").write_text(text)
    assert main(["status", str(tmp_path)]) == 2
    assert "sweep.yaml: this is not what a sweep wrote" in capsys.readouterr().err


@pytest.mark.parametrize("sweep", ["foo://x", "hdfs://x/y", "a\0b", "x" * 400])
def test_places_that_are_no_sweep(capsys, tmp_path, sweep):
    for command in (["export", sweep, "full", "-o", str(tmp_path / "out")], ["compare", sweep, "y.parquet"],
                    ["responses", sweep], ["report", sweep], ["status", sweep], ["dissect", sweep],
                    ["rescore", sweep], ["pull", sweep, "-o", str(tmp_path / "out")]):  # fmt: skip
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("layersweep: ")


def test_a_pipe_without_a_writer_is_not_waited_for(capsys, tmp_path):
    """Nor is a file taken for the folder of a sweep; what the shell makes of `<(command)` is read."""
    pipe, file = tmp_path / "pipe.parquet", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("x")
    with within(60):
        for command in (["report", str(pipe)], ["compare", str(pipe), str(file)], ["plan", str(pipe)]):
            assert main(command) == 2
            assert "it is a pipe, not a file" in capsys.readouterr().err
        for command in ("report", "status", "responses"):
            assert main([command, str(file)]) == 2
            assert "Errno" not in capsys.readouterr().err
    read, write = os.pipe()
    os.write(write, yaml.safe_dump(SPEC | {"output": str(tmp_path / "out")}).encode())
    os.close(write)
    assert main(["plan", f"/dev/fd/{read}"]) == 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def score(:", "importing .*rewards.py fails: SyntaxError"),
        ("import nothing_of_the_kind", "importing .*rewards.py fails: ModuleNotFoundError"),
        ("def scores(prompts, completions, **columns): pass", "rewards.py has no score"),
        ("score = 3", "rewards.py:score is no function but int"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_code_of_ones_own_that_cannot_be_loaded(capfd, tmp_path, monkeypatch, code, says):
    """It is imported in a worker process, which has the same standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(code)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    task = {"type": "prompts", "data": {"path": "rows.jsonl", "prompt_format": "plain"}, "reward": "rewards.py:score"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SPEC | {"model": "Qwen/Qwen3-1.7B-Base", "task": task}))
    assert main(["plan", "sweep.yaml"]) == 2
    said = capfd.readouterr().err
    assert re.match(f"layersweep: task: reward: .*{says}", said) and "Traceback" not in said, said


def test_words_that_were_meant_as_values(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("training..steps=5", "=5", "training.=5"):
        assert main(["plan", word]) == 2
        assert f"{word}: not an override; write FIELD=VALUE" in capsys.readouterr().err
    (tmp_path / "a=b=c.yaml").write_text(yaml.safe_dump(SPEC))
    assert main(["plan", "./a=b=c.yaml"]) == 0
    assert main(["plan", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"layersweep: {tmp_path}: Is a directory; name the file of the spec\n"
