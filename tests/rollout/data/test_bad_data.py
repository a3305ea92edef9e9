"""Prompt data that cannot be used: contradictory settings, bad rows, files that are none."""

import json
import os
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.data_files import DataError
from layersweep.rollout.data.prompt_data import PromptData
from tests.helpers.prompt_files import ALL_TRAIN, GOOD, jsonl, load


@pytest.mark.parametrize(
    "settings, says",
    [
        ({}, "either path"),
        ({"path": "a.jsonl", "hub": "b"}, "either path"),
        ({"path": "a.jsonl", "selection_share": 0.6, "final_share": 0.6}, "above 1"),
        ({"path": "a.jsonl", "template": "Solve it."}, "exactly once"),
        ({"path": "a.jsonl", "colums": {}}, "colums"),
        ({"path": "a.jsonl", "subsample": 0}, "subsample"),
        ({"path": "a.jsonl", "revision": "main"}, "revision: a path has no revisions"),
    ],
)
def test_contradictions_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        DataConfig(**settings)


def test_missing_path_and_folder_without_data(tmp_path):
    with pytest.raises(DataError, match=r"data\.path: .*nowhere\.jsonl does not exist"):
        DataConfig(path=str(tmp_path / "nowhere.jsonl")).files()
    with pytest.raises(DataError, match=r"data\.path: .* is a folder without data: \.jsonl, \.json, \.csv, "):
        DataConfig(path=str(tmp_path)).files()


BAD_LINES = {
    "empty object": ({}, "no column 'prompt' or 'question'"),
    "empty question": ({"question": "", "answer": "1"}, "question is empty"),
    "blank question": ({"question": " \n", "answer": "1"}, "question is empty"),
    "question missing": ({"text": "q", "answer": "1"}, "there are: text, answer"),
    "question null": ({"question": None, "answer": "1"}, "question is neither text"),
    "question number": ({"question": 7, "answer": "1"}, "neither text nor a list of messages but int"),
    "question object": ({"question": {"a": 1}, "answer": "1"}, "but dict"),
    "answer missing": ({"question": "q"}, "no answer"),
    "answer null": ({"question": "q", "answer": None}, "no answer"),
    "answer of a wrong type": ({"question": "q", "answer": [1]}, "not text but list"),
    "ground truth missing": ({"prompt": "q", "reward_model": {"style": "rule"}}, "no answer"),
    "ground truth null": ({"prompt": "q", "reward_model": {"ground_truth": None}}, "no answer"),
    "prompt empty list": ({"prompt": [], "answer": "1"}, "prompt is empty"),
    "prompt list of text": ({"prompt": ["q"], "answer": "1"}, "without a role"),
    "message without role": ({"prompt": [{"content": "q"}], "answer": "1"}, "without a role"),
    "message of unknown role": ({"prompt": [{"role": "boss", "content": "q"}], "answer": "1"}, "without a role"),
    "message without content": ({"prompt": [{"role": "user"}], "answer": "1"}, "content is not text"),
    "message with an image": ({"prompt": [{"role": "user", "content": [{}]}], "answer": "1"}, "content is not text"),
    "message blank": ({"prompt": [{"role": "user", "content": " "}], "answer": "1"}, "prompt is empty"),
    "assistant last": ({"prompt": [{"role": "assistant", "content": "q"}], "answer": "1"}, "end with a message of"),
    "too long": ({"question": "q" * 101, "answer": "1"}, "101 characters, data.max_prompt_chars is 100"),
    "huge line": ({"question": "q", "answer": "1" * 5000}, "longer than data.max_row_bytes, 4000"),
    "lone surrogate": ('{"question": "\\ud800", "answer": "1"}', "the prompt is no valid text; save"),
    "no JSON": ("not json", "no JSON"),
    "cut off": ('{"question": "q", "ans', "no JSON"),
    "two objects": ('{"question": "q"} {"answer": "1"}', "no JSON"),
    "a list": ("[1, 2]", "not an object with columns but list"),
    "text": ('"q"', "but str"),
    "null": ("null", "but NoneType"),
    "deep nesting": ("[" * 1900, "no JSON"),
    "endless number": ('{"question": ' + "9" * 3900 + "}", "neither text|no JSON"),
    "control bytes": ("\x00\x01\x02", "no JSON"),
    "zero width": ({"question": "\u200b \u200b", "answer": "1"}, "question is empty"),
    "where a row is no JSON": (
        '{"question": "q" "answer": "1"}',
        r"no JSON \(expecting ',' delimiter, at character 18: '",
    ),
    "where a row ends": ('{"question": "q", "answer": "1"', r"no JSON \(it ends too early: expecting ',' delimiter\)"),
    "Python's spelling": ("{'question': 'q'}", r"in double quotes, at character 2: \"'question'"),
    "the columns there are": ({"question": "q", "anwser": "1"}, r"\(see data.columns\); there are: question, anwser"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_each_bad_row_is_named_or_left_out(tmp_path, name):
    line, says = BAD_LINES[name]
    path = jsonl(tmp_path / "a.jsonl", GOOD, line, GOOD | {"question": "and this?"})
    limits = {"max_prompt_chars": 100, "max_row_bytes": 4000} | ALL_TRAIN
    with pytest.raises(DataError, match=rf"1 of 3 rows is bad: row 2: .*({says}).*bad_rows: skip"):
        load(path, **limits)
    report = load(path, bad_rows="skip", **limits).report
    assert (report.rows, report.bad, report.train) == (3, 1, 2)


def test_the_first_five_bad_rows_and_a_count(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"question": "", "answer": "1"} for _ in range(8)), GOOD)
    with pytest.raises(DataError, match=r"8 of 9 rows are bad: row 1, .*row 5: question is empty; and 3 more"):
        load(path)


def test_bad_rows_of_a_folder_name_the_file(tmp_path):
    jsonl(tmp_path / "a.jsonl", GOOD)
    jsonl(tmp_path / "b.jsonl", "oops")
    with pytest.raises(DataError, match=r"b\.jsonl row 1: no JSON"):
        load(str(tmp_path))


def test_blank_lines_are_no_rows(tmp_path):
    assert load(jsonl(tmp_path / "a.jsonl", "", GOOD, "  ", ""), **ALL_TRAIN).report.rows == 1


def bad_file(rng: random.Random, path: Path) -> Path:
    """A file that holds nothing usable, one of many kinds."""
    sound = path.with_suffix(".sound")
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q"] * 500, "answer": ["1"] * 500}), sound)
    parquet = sound.read_bytes()
    sound.unlink()
    kinds = [
        (".parquet", b""),
        (".parquet", rng.randbytes(rng.randint(1, 3000))),
        (".parquet", parquet[: rng.randint(1, len(parquet) - 1)]),
        (".parquet", b"PAR1" + rng.randbytes(200) + b"PAR1"),
        (".parquet", json.dumps(GOOD).encode()),
        (".jsonl", b""),
        (".jsonl", b"\n" * rng.randint(1, 50)),
        (".jsonl", rng.randbytes(rng.randint(1, 3000))),
        (".jsonl", b"\xff\xfe" + json.dumps(GOOD)[:-9].encode("utf-16-le")),
        (".jsonl", parquet),
        (".jsonl", json.dumps([GOOD, GOOD], indent=1).encode()),
        (".jsonl", b'{"question": "q", "answer": ' * rng.randint(1, 5)),
        (".jsonl", b"question,answer\nq,1\n"),
    ]
    suffix, content = rng.choice(kinds)
    file = path.with_suffix(suffix)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("seed", range(50))
def test_fifty_bad_files_are_refused_with_a_reason(tmp_path, seed):
    file = bad_file(random.Random(seed), tmp_path / "bad")
    for bad_rows in ("refuse", "skip"):
        with pytest.raises(DataError, match=r"^data(\.path)?: .*(bad|cannot be read as parquet|no usable row)"):
            load(str(file), bad_rows=bad_rows)


@pytest.mark.parametrize("place", ["pipe.jsonl", "folder", "/dev/null", "/dev/zero"])
def test_pipes_and_devices_are_refused_not_waited_for(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jsonl").write_text('{"question": "q", "answer": "1"}')
    for pipe in ("pipe.jsonl", "folder/b.jsonl"):
        os.mkfifo(tmp_path / pipe)
    with pytest.raises(DataError, match=r"data\.path: .*(neither a file nor a folder|no ordinary file)"):
        PromptData(DataConfig(path=str(tmp_path / place)), lambda raw: raw["answer"])


def test_a_folder_of_very_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("layersweep.rollout.data.data_files.MOST_FILES", 3)
    for i in range(4):
        (tmp_path / f"{i}.jsonl").write_text('{"question": "q", "answer": "1"}')
    with pytest.raises(DataError, match="more than 3 files; name the folder of the data alone"):
        DataConfig(path=str(tmp_path)).files()


def test_dates_that_python_does_not_have_are_bad_rows(tmp_path):
    table = pyarrow.table({"question": ["a"], "answer": pyarrow.array([2**31 - 1], pyarrow.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1: a value that cannot be read"):
        PromptData(DataConfig(path=str(tmp_path / "a.parquet")), lambda raw: raw["answer"])


@pytest.mark.parametrize(("field", "value"), [("decontaminate_ngram", 10**18), ("max_row_bytes", 10**30)])
def test_bounds_that_nothing_reaches_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        DataConfig(path="a.jsonl", **{field: value})
