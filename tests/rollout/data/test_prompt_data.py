"""Prompt data: layouts, bad rows, splits, batches, decontamination and the fingerprint."""

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
from layersweep.rollout.data.decontamination import contaminated, ngrams
from layersweep.rollout.data.prompt_data import PromptData, split_of
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
    with pytest.raises(DataError, match=r"data\.path: .*a\.jsonl\.gz cannot be read after row \d+"):
        load(str(tmp_path / "a.jsonl.gz"), bad_rows="skip", **ALL_TRAIN)


def test_columns_that_nothing_reads_cannot_break_a_file(tmp_path):
    """arrow-rs #982, and text that is no UTF-8: in other columns without effect, in a row's question a bad row."""
    bad_text = pyarrow.array([b"fine", b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.string())
    strange = {"when": pyarrow.array([0, 1], pyarrow.timestamp("us", tz="Nowhere/Nothing")), "note": bad_text}
    good = {"question": ["Q0", "Q1"], "answer": ["0", "1"]}
    pyarrow.parquet.write_table(pyarrow.table(good | strange), tmp_path / "a.parquet")
    assert load(str(tmp_path / "a.parquet"), **ALL_TRAIN).report.train == 2
    pyarrow.parquet.write_table(pyarrow.table(good | {"question": bad_text}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="1 of 2 rows are bad: row 2: a value that cannot be read"):
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
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_each_bad_row_is_named_or_left_out(tmp_path, name):
    line, says = BAD_LINES[name]
    path = jsonl(tmp_path / "a.jsonl", GOOD, line, GOOD | {"question": "and this?"})
    limits = {"max_prompt_chars": 100, "max_row_bytes": 4000} | ALL_TRAIN
    with pytest.raises(DataError, match=rf"1 of 3 rows are bad: row 2: .*({says}).*bad_rows: skip"):
        load(path, **limits)
    report = load(path, bad_rows="skip", **limits).report
    assert (report.rows, report.bad, report.train) == (3, 1, 2)


def test_the_first_five_bad_rows_and_a_count(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"question": "", "answer": "1"} for _ in range(8)), GOOD)
    with pytest.raises(DataError, match=r"8 of 9 rows are bad: row 1: .*row 5: question is empty; and 3 more"):
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


# Splits, batches, subsample


def test_splits_never_overlap_and_lose_nothing(tmp_path):
    data = load(numbered(tmp_path / "a.jsonl", 1000), selection_share=0.2, final_share=0.3)
    ids = {s: {p.id for p in data.prompts(s, getattr(data.report, s))} for s in ("train", "selection", "final")}
    assert not ids["train"] & ids["selection"]
    assert not ids["train"] & ids["final"]
    assert not ids["selection"] & ids["final"]
    assert sum(map(len, ids.values())) == 1000
    # Binomial, standard deviation 13 to 16: five of them either way.
    assert len(ids["selection"]) == pytest.approx(200, abs=65)
    assert len(ids["final"]) == pytest.approx(300, abs=75)


def test_split_depends_on_the_text_alone(tmp_path):
    for text in ("a", "b", "c", "d", "e", "f"):
        assert split_of(text, 1, 0) == "selection"
        assert split_of(text, 0, 1) == "final"
        assert split_of(text, 0, 0) == "train"


def test_order_of_rows_changes_nothing(tmp_path):
    lines = Path(numbered(tmp_path / "a.jsonl", 200)).read_text().splitlines()
    one = load(str(tmp_path / "a.jsonl"), subsample=100)
    other = load(jsonl(tmp_path / "b.jsonl", *reversed(lines)), subsample=100)
    assert one.fingerprint() == other.fingerprint()
    assert one.prompts("train", 20, seed=3) == other.prompts("train", 20, seed=3)
    assert one.prompts("selection", 5, seed=1) == other.prompts("selection", 5, seed=1)


def test_training_batches_draw_without_replacement_within_a_pass(tmp_path):
    data = load(numbered(tmp_path / "a.jsonl", 40), **ALL_TRAIN)
    batches = [[p.id for p in data.prompts("train", 10, seed=s)] for s in range(8)]
    first, second = sum(batches[:4], []), sum(batches[4:], [])
    assert len(set(first)) == 40
    assert len(set(second)) == 40
    assert first != second, "each pass has its own order"
    assert batches == [[p.id for p in data.prompts("train", 10, seed=s)] for s in range(8)]


def test_evaluation_prompts_of_a_larger_suite_contain_those_of_a_smaller(tmp_path):
    data = load(numbered(tmp_path / "a.jsonl", 300), selection_share=0.5)
    assert data.prompts("selection", 20, seed=4) == data.prompts("selection", 60, seed=4)[:20]
    assert data.prompts("selection", 20, seed=4) != data.prompts("selection", 20, seed=5)


def test_too_few_prompts_says_how_many_there_are(tmp_path):
    data = load(numbered(tmp_path / "a.jsonl", 12), **ALL_TRAIN)
    with pytest.raises(DataError, match="has 12 train prompts, 13 were asked for"):
        data.prompts("train", 13)
    with pytest.raises(DataError, match="has 0 final prompts"):
        data.prompts("final", 1)


def test_subsamples_are_seeded_and_nested(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 300)

    def ids(size, seed):
        return set(load(path, subsample=size, subsample_seed=seed, **ALL_TRAIN).questions("train"))

    assert len(ids(50, 0)) == 50
    assert ids(50, 0) == ids(50, 0)
    assert ids(50, 0) < ids(100, 0)
    assert ids(50, 0) != ids(50, 1)
    assert len(ids(1000, 0)) == 300


def test_equal_prompts_count_once(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", GOOD, {"question": " fine? ", "answer": "yes"}, GOOD)
    data = load(path, **ALL_TRAIN)
    assert (data.report.duplicates, data.report.conflicting, data.report.train) == (2, 0, 1)


@pytest.mark.parametrize("subsample", [None, 3])
def test_questions_with_different_answers_are_dropped_whatever_the_order(tmp_path, subsample):
    """Two of five questions have more than one answer; a subsample of 3 has room for the other three."""
    sound = [{"question": f"{i}?", "answer": str(i)} for i in range(3)]
    contradicting = [{"question": "a?", "answer": "1"}, {"question": "b?", "answer": "1"},
                     {"question": "a?", "answer": "1"}, {"question": "a?", "answer": "2"},
                     {"question": "b?", "answer": "3"}]  # fmt: skip
    for rows in (sound + contradicting, contradicting[::-1] + sound):
        data = load(jsonl(tmp_path / "a.jsonl", *rows), subsample=subsample, **ALL_TRAIN)
        assert sorted(data.questions("train")) == ["0?", "1?", "2?"]
        assert (data.report.conflicting, data.report.duplicates) == (5, 0)


def test_the_report_says_what_became_of_every_row(tmp_path):
    """Seven rows: one bad, one repeated, two that contradict each other, three to train on."""
    rows = [GOOD, GOOD, {"question": "", "answer": "1"}, {"question": "a?", "answer": "1"},
            {"question": "a?", "answer": "2"}, {"question": "b?", "answer": "1"},
            {"question": "c?", "answer": "1"}]  # fmt: skip
    report = load(jsonl(tmp_path / "a.jsonl", *rows), bad_rows="skip", **ALL_TRAIN).report
    assert str(report) == ("7 rows (1 bad, 1 duplicate, 2 contradicting dropped): 3 train, 0 selection, 0 final")


def test_fingerprint_follows_content(tmp_path):
    one = load(jsonl(tmp_path / "a.jsonl", GOOD)).fingerprint()
    assert load(jsonl(tmp_path / "b.jsonl", GOOD | {"more": 1})).fingerprint() == one
    assert load(jsonl(tmp_path / "c.jsonl", GOOD | {"answer": "no"})).fingerprint() != one
    assert load(jsonl(tmp_path / "d.jsonl", GOOD), template="Q: {question}").fingerprint() != one


# Decontamination


EVALUATION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def test_ngrams_by_hand():
    assert ngrams("A b, c  d!", 3) == ["a b c", "b c d"]
    assert ngrams("3 + 4 =", 13) == ["3 + 4 ="]
    assert ngrams(" Two  words", 2) == ["two words"]


def test_thirteen_shared_words_contaminate_twelve_do_not():
    # The evaluation question begins with these thirteen words.
    shared = "natalia sold CLIPS to 48 of her friends (in april) and then she"
    twelve = shared.removesuffix(" she")
    assert contaminated([f"Yesterday {shared} slept.", f"Yesterday {twelve} slept."], [EVALUATION], 13) == {0}
    assert contaminated([f"Yesterday {shared} slept.", f"Yesterday {twelve} slept."], [EVALUATION], 12) == {0, 1}


def test_short_prompts_match_only_as_a_whole():
    assert contaminated(["3 + 4 =", "3  +  4 =", "3 - 4 =", "13 + 4 ="], ["3 + 4 ="], 13) == {0, 1}


def test_words_of_the_prompt_form_are_no_leak():
    form = "Solve the following problem step by step and put the final answer on a line of its own: "
    training = [form + f"how much is {i} and {i}?" for i in range(2000)]
    assert contaminated(training, [form + "how much is 7 and 7?"], 13) == {7}


def test_training_rows_are_dropped_and_counted(tmp_path):
    leak = {"question": "Think. " + EVALUATION + " How many clips?", "answer": "72"}
    path = jsonl(tmp_path / "a.jsonl", GOOD, leak)
    data = load(path, **ALL_TRAIN)
    assert data.decontaminate([EVALUATION]) == 1
    assert data.questions("train") == ["fine?"]
    assert (data.report.contaminated, data.report.train) == (1, 1)
    assert load(path, decontaminate_ngram=None, **ALL_TRAIN).decontaminate([EVALUATION]) == 0


INSTRUCTION = "Please solve the following problem step by step and put your final answer in a box at the end: "


@pytest.mark.parametrize("count", [10, 40, 300])
def test_a_shared_instruction_is_no_leak_however_few_rows_there_are(tmp_path, count):
    """marin #6852. All sums and differences of one digit numbers are different questions, in the same words."""
    sums = [f"{a} {sign} {b} =" for a in range(10) for b in range(10) for sign in "+-*"]
    random.Random(0).shuffle(sums)
    rows = [{"question": INSTRUCTION + text, "answer": "1"} for text in sums[:count]]
    data = load(jsonl(tmp_path / "a.jsonl", *rows), selection_share=0.3, final_share=0.2)
    assert data.report.contaminated == 0
    assert data.report.train + data.report.selection + data.report.final == count


def test_below_a_shared_instruction_what_differs_is_compared():
    """The question that both have is a leak whatever its length; half of it is none."""
    asked = [INSTRUCTION + text for text in ("how much is 17 and 25?", "name the largest prime below 1000")]
    training = [INSTRUCTION + text for text in ("How much is  17 and 25?", "how much is 17 and 26?", "how much is 17?")]
    training += [INSTRUCTION + f"what is {i} squared?" for i in range(20)]
    assert contaminated(training, asked, 13) == {0}
    long = "a farmer with seven sheep and nine goats sells four of them on monday and two on friday"
    others = [INSTRUCTION + f"what is {i} squared?" for i in range(20)]
    assert contaminated([f"Again: {long}!", *others], [INSTRUCTION + long, INSTRUCTION + "1?"], 13) == {0}


def test_own_held_out_prompts_decontaminate_too(tmp_path):
    """Twenty questions of 15 words, and each once more with a word before it: one held out takes the other along."""
    texts = [" ".join(f"{i}w{k}" for k in range(15)) for i in "abcdefghijklmnopqrst"]
    rows = [{"question": before + text, "answer": "1"} for text in texts for before in ("", "Again: ")]
    data = load(jsonl(tmp_path / "a.jsonl", *rows), selection_share=0.3, final_share=0.0)
    held_out, trained = (
        {question.removeprefix("Again: ") for question in data.questions(split)} for split in ("selection", "train")
    )
    assert data.report.contaminated > 0
    assert not held_out & trained
    assert held_out | trained == set(texts)


def test_the_message_names_decontamination_where_it_took_the_prompts(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"question": EVALUATION, "answer": "1"}, GOOD)
    data = load(path, **ALL_TRAIN)
    data.decontaminate([EVALUATION])
    with pytest.raises(DataError, match=r"has 1 train prompts, 2 were asked for .*1 contaminated.*decontaminate_ngram"):
        data.prompts("train", 2)


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
