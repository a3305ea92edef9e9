"""Prompt data: files and columns as people have them."""

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from layersweep.rollout.data.data_config import Columns, DataConfig
from layersweep.rollout.data.data_files import DataError
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import ground_truth
from tests.helpers.prompt_files import ALL_TRAIN, de_facto, jsonl, load, numbered, rows_of, truth, written


def test_question_and_answer_columns(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"problem": " 1 + 1? ", "answer": "2"})
    (prompt,) = load(path, columns={"question": "problem"}, **ALL_TRAIN).prompts("train", 1)
    assert prompt.messages == ({"role": "user", "content": " 1 + 1? "},)
    assert prompt.text is None
    assert prompt.truth == "2"


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
    with pytest.raises(DataError, match="row 1: the answer is no valid text; save the data in UTF-8"):
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
