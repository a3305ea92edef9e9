"""Prompt data: layouts and bad rows."""

import json
import os
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from layersweep.rollout.data.data_config import Columns, DataConfig
from layersweep.rollout.data.data_files import DataError
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import ground_truth


def truth(raw):
    answer = ground_truth(raw, Columns())
    if not isinstance(answer, str):
        raise ValueError(f"answer is not text but {type(answer).__name__}")
    return answer


def jsonl(path: Path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, count: int) -> str:
    return jsonl(path, *({"question": f"What is {i} plus one?", "answer": str(i + 1)} for i in range(count)))


def load(path: str, **settings) -> PromptData:
    return PromptData(DataConfig(path=path, **settings), truth)


ALL_TRAIN = {"selection_share": 0.0, "final_share": 0.0}


# Layouts


def test_question_and_answer_columns(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"problem": " 1 + 1? ", "answer": "2"})
    (prompt,) = load(path, columns={"question": "problem"}, **ALL_TRAIN).prompts("train", 1)
    assert prompt.messages == ({"role": "user", "content": " 1 + 1? "},)
    assert prompt.text is None
    assert prompt.truth == "2"


def de_facto(question: str, answer: str) -> dict:
    return {
        "data_source": "somewhere",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": 0},
    }


def test_de_facto_layout_in_parquet(tmp_path):
    table = pyarrow.Table.from_pylist([de_facto("What is 6 * 7?", "42")])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (prompt,) = load(str(tmp_path / "a.parquet"), system="ignored, the row has one", **ALL_TRAIN).prompts("train", 1)
    assert prompt.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 6 * 7?"},
    )
    assert prompt.truth == "42"
    assert prompt.info["data_source"] == "somewhere"


def test_a_folder_is_read_whole_and_in_any_layout(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"question": "Q1", "answer": "1"}, de_facto("Q2", "2"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["Q3"], "answer": ["3"]}), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text("not data")
    data = load(str(tmp_path), **ALL_TRAIN)
    assert sorted(p.truth for p in data.prompts("train", 3)) == ["1", "2", "3"]


def rows_of(*numbers: int) -> list[dict]:
    return [{"question": f"Q{i}", "answer": str(i)} for i in numbers]


def written(folder: Path, files: dict[str, list[dict]]) -> Path:
    """Files of rows below a folder, in the format that each name ends with."""
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            continue
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        kind = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(path.suffix)
        with pyarrow.output_stream(str(path), compression=kind) as stream:
            stream.write(lines)
    return folder


LAYOUTS = {
    "shards by split": ({"train-0-of-2.parquet": [0], "train-1-of-2.parquet": [1], "test-0-of-1.parquet": [2]}, {}),
    "folders by split": ({"data/train/a.jsonl": [0, 1], "data/test/a.jsonl": [2], "README.md": []}, {}),
    "data folder": ({"data/train-00000.parquet": [0, 1], "data/validation-00000.parquet": [2]}, {}),
    "a name before": ({"gsm8k-train.jsonl": [0, 1], "gsm8k_test.jsonl": [2]}, {}),
    "other spellings": ({"eval.jsonl": [0, 1], "training.jsonl": [2]}, {"split": "test"}),
    "a split of its own": ({"algebra.jsonl": [0, 1], "geometry.jsonl": [2]}, {"split": "algebra"}),
    "no split at all": ({"b.jsonl": [0], "a.parquet": [1]}, {}),
    "subsets": ({"main/train.jsonl": [0, 1], "main/test.jsonl": [2], "socratic/train.jsonl": [3]}, {"subset": "main"}),
    "compressed": ({"a.jsonl.gz": [0], "b.jsonl.zst": [1], "c.jsonl.bz2": []}, {}),
    "metadata, hidden": ({"a.jsonl": [0, 1], "dataset_info.json": [2], ".cache/b.jsonl": [2], "_old/c.csv": [2]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_a_folder_the_split_is_read_that_was_asked_for(tmp_path, name):
    """OpenRLHF PR 367, ray #12243. Rows 0 and 1 are meant, others not."""
    files, settings = LAYOUTS[name]
    folder = written(
        tmp_path / "data set", {file: rows_of(*rows) for file, rows in files.items() if file != "README.md"}
    )
    (folder / "README.md").write_text("no data")
    data = load(str(folder), **settings, **ALL_TRAIN)
    assert sorted(data.questions("train")) == ["Q0", "Q1"]


REFUSED_LAYOUTS = {
    "test alone": (["test.jsonl"], {}, r"data\.split: .* has no train files; there are test"),
    "no such split": (["train.jsonl", "test.jsonl"], {"split": "validation"}, r"data\.split: .*no validation files"),
    "no split named": (["a.jsonl"], {"split": "test"}, r"data\.split: no file of .* names a split \(a\.jsonl\)"),
    "unknown split": (["train.jsonl"], {"split": "algebra"}, r"data\.split: no file of .* names 'algebra'"),
    "some name a split": (["train.jsonl", "more.jsonl"], {}, r"data\.split: .*others that do not, such as more\.jsonl"),
    "two splits in a name": (["train_test.jsonl"], {}, r"data\.split: train_test\.jsonl .* names the splits train and"),
    "two folders": (["main/a.jsonl", "socratic/a.jsonl"], {}, r"data\.subset: .* has data in main, socratic"),
    "no such subset": (["main/a.jsonl"], {"subset": "socratic"}, r"data\.subset: .* has no 'socratic'; .* main"),
    "beside inner folders": (["a.jsonl", "old/a.jsonl"], {}, r"data\.subset: .*the folder itself, old"),
    "another format": (["a.jsonl", "b.xlsx"], {}, r"data\.path: .* holds b\.xlsx, which cannot be read: .*\.gz"),
    "another compression": (["a.jsonl", "b.jsonl.xz"], {}, r"data\.path: .* holds b\.jsonl\.xz, which cannot be read"),
    "compressed parquet": (["a.jsonl", "b.parquet.gz"], {}, r"data\.path: .* holds b\.parquet\.gz"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_LAYOUTS)
def test_folders_that_could_mean_several_things_are_refused(tmp_path, name):
    files, settings, says = REFUSED_LAYOUTS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    with pytest.raises(DataError, match=says):
        DataConfig(path=str(tmp_path), **settings).files()


def test_a_linked_file_is_read_and_a_linked_folder_is_not_passed_over(tmp_path):
    """The hub's cache is made of links to files; a link to a folder would be left out without a word."""
    kept = written(tmp_path / "kept", {"blob": rows_of(0, 1)})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(kept / "blob")
    assert load(str(folder), **ALL_TRAIN).report.train == 2
    (folder / "more").symlink_to(kept)
    with pytest.raises(DataError, match="holds more, which cannot be read"):
        DataConfig(path=str(folder)).files()


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"split": "test"}, r"data\.split: .*a\.jsonl is one file"),
        ({"subset": "main"}, r"data\.subset: .*a\.jsonl is one file"),
    ],
)
def test_one_file_has_neither_splits_nor_subsets(tmp_path, settings, says):
    jsonl(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match=says):
        DataConfig(path=str(tmp_path / "a.jsonl"), **settings).files()


def test_a_path_may_begin_with_a_tilde_or_be_a_uri(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    numbered(tmp_path / "a.jsonl", 3)
    for path in ("~/a.jsonl", (tmp_path / "a.jsonl").as_uri()):
        assert load(path, **ALL_TRAIN).report.train == 3
    import fsspec

    fsspec.filesystem("memory").pipe("/set/train.jsonl", (tmp_path / "a.jsonl").read_bytes())
    assert load("memory://set", **ALL_TRAIN).report.train == 3
    assert DataConfig(path="s3://bucket/set").fetched == "data set s3://bucket/set"
    assert DataConfig(path=(tmp_path / "a.jsonl").as_uri()).fetched is None
    with pytest.raises(ValidationError, match=r"path: nosuch://x: nosuch:// is no protocol"):
        DataConfig(path="nosuch://x")


def test_a_file_may_be_called_what_looks_like_a_chain_of_filesystems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    numbered(tmp_path / "a::b.jsonl", 3)
    for path in ("a::b.jsonl", str(tmp_path / "a::b.jsonl"), str(tmp_path)):
        assert load(path, **ALL_TRAIN).report.train == 3


def test_a_file_that_ends_early_is_named(tmp_path):
    written(tmp_path, {"a.jsonl.gz": rows_of(*range(2000))})
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data\.path: .*a\.jsonl\.gz cannot be read( after row \d+)?: "):
        load(str(tmp_path / "a.jsonl.gz"), bad_rows="skip", **ALL_TRAIN)


def test_columns_that_nothing_reads_cannot_break_a_file(tmp_path):
    """arrow-rs #982, and text that is no UTF-8: in other columns without effect, in a row's question a bad row."""
    bad_text = pyarrow.array([b"fine", b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.string())
    strange = {"when": pyarrow.array([0, 1], pyarrow.timestamp("us", tz="Nowhere/Nothing")), "note": bad_text}
    good = {"question": ["Q0", "Q1"], "answer": ["0", "1"]}
    pyarrow.parquet.write_table(pyarrow.table(good | strange), tmp_path / "a.parquet")
    assert load(str(tmp_path / "a.parquet"), **ALL_TRAIN).report.train == 2
    pyarrow.parquet.write_table(pyarrow.table(good | {"question": bad_text}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="1 of 2 rows is bad: row 2: a value that cannot be read"):
        load(str(tmp_path / "b.parquet"), **ALL_TRAIN)
    (tmp_path / "c.jsonl").write_bytes(b'{"question": "Q0", "answer": "0", "note": "\xff"}\n')
    assert load(str(tmp_path / "c.jsonl"), **ALL_TRAIN).report.train == 1
    (tmp_path / "d.jsonl").write_bytes(b'{"question": "Q0", "answer": "\xff"}\n')
    with pytest.raises(DataError, match="row 1: the answer is no valid Unicode"):
        load(str(tmp_path / "d.jsonl"), **ALL_TRAIN)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Q0"]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"e\.parquet has none of the columns .* it has: text"):
        load(str(tmp_path / "e.parquet"), **ALL_TRAIN)


@pytest.mark.parametrize(
    "row, question, answer",
    [
        ({"problem": "P", "solution": "S"}, "P", "S"),
        ({"problem": "P", "question": "Q", "solution": "S", "answer": "A"}, "Q", "A"),
        ({"input": "I", "target": "T"}, "I", "T"),
        ({"Body": "Two hens.", "Question": "How many?", "Answer": "2"}, "Two hens.\nHow many?", "2"),
        ({"body": "Two hens.", "question": "How many?", "answer": "2"}, "Two hens.\nHow many?", "2"),
        ({"context": None, "question": "Q", "final_answer": "F", "solution": "S"}, "Q", "F"),
        ({"prompt": "P", "question": "Q", "context": "C", "answer": "A"}, "P", "A"),
    ],
)
def test_columns_of_the_usual_names_are_found(tmp_path, row, question, answer):
    (prompt,) = load(jsonl(tmp_path / "a.jsonl", row), **ALL_TRAIN).prompts("train", 1)
    assert (prompt.messages[0]["content"], prompt.truth) == (question, answer)


def test_named_columns_are_the_only_ones():
    with pytest.raises(ValueError, match="no answer, neither .* nor a column 'solution'"):
        ground_truth({"question": "Q", "answer": "A"}, Columns(answer="solution"))


def test_nothing_is_stripped_from_what_the_model_reads(tmp_path):
    """A base model's prompt that ends in a newline keeps it, in either format."""
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "  1 + 1 =\n", "answer": "2"})
    (chat,) = load(path, **ALL_TRAIN).prompts("train", 1)
    (plain,) = load(path, prompt_format="plain", template="{question}>", **ALL_TRAIN).prompts("train", 1)
    assert chat.messages[0]["content"] == "  1 + 1 =\n"
    assert plain.text == "  1 + 1 =\n>"


def test_hub_name_is_loaded_with_datasets(tmp_path, monkeypatch):
    # datasets takes a folder in the place of a name, so this needs no network.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    numbered(tmp_path / "train.jsonl", 5)
    data = PromptData(DataConfig(hub=str(tmp_path), **ALL_TRAIN), truth)
    assert data.report.train == 5
    with pytest.raises(DataError, match=r"data\.hub: .*cannot be loaded"):
        PromptData(DataConfig(hub=str(tmp_path), split="nope"), truth)


def test_template_and_system_prompt(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"question": "1 + {x}?", "answer": "2"})
    template = "{question}\nAnswer in \\boxed{}."
    (chat,) = load(path, template=template, system="S", **ALL_TRAIN).prompts("train", 1)
    assert chat.messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "1 + {x}?\nAnswer in \\boxed{}."},
    )
    (plain,) = load(path, template=template, system="S", prompt_format="plain", **ALL_TRAIN).prompts("train", 1)
    assert plain.text == "S\n\n1 + {x}?\nAnswer in \\boxed{}."
    assert plain.messages is None
    assert plain.id == chat.id, "the identity is the question's, whatever it is wrapped in"


# Settings and files that cannot be used


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


GOOD = {"question": "fine?", "answer": "yes"}
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
    "lone surrogate": ('{"question": "\\ud800", "answer": "1"}', "no valid Unicode"),
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
    "the columns there are": (
        {"question": "q", "anwser": "1"},
        "'answer' \\(see data.columns\\); there are: question, anwser",
    ),
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
