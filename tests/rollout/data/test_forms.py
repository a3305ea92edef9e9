"""Files as people have them: read without settings where they can be, and refused with row and fix where not."""

import csv
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from layersweep.rollout.data.data_config import Columns, DataConfig
from layersweep.rollout.data.data_files import DataError
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import ground_truth
from layersweep.rollout.data.row_readers import value_at
from layersweep.rollout.tasks.code import CodeConfig
from layersweep.rollout.tasks.math import MathConfig

ALL_TRAIN = {"selection_share": 0.0, "final_share": 0.0}
ROWS = [{"question": "Two, and\ntwo?", "answer": "4"}, {"question": 'Say "three"', "answer": "3"}]
NESTED = [{"question": row["question"], "extra_info": {"answer": row["answer"]}} for row in ROWS]


def as_csv(rows, separator=",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_arrow(rows) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_arrow_file(rows) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return sink.getvalue()


def as_parquet(rows) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_dictionaries(rows) -> bytes:
    """Parquet whose text is stored once for each value, as pandas' categories are."""
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    columns = [column.combine_chunks().dictionary_encode() for column in table.columns]
    pyarrow.parquet.write_table(pyarrow.table(columns, table.column_names), sink)
    return sink.getvalue()


def as_twice(rows) -> bytes:
    """Parquet with two columns of one name, which no pandas writes."""
    table = pyarrow.table([[row["question"] for row in rows], [""] * len(rows), ["1"] * len(rows)],
                          names=["question", "answer", "answer"])  # fmt: skip
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def packed(content: bytes, kind: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, kind) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def written(folder: Path, files: dict[str, bytes]) -> str:
    """One file by its path, or the folder of several."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder / next(iter(files)) if len(files) == 1 else folder)


def load(path: str, **settings) -> list[tuple[str, str]]:
    """Questions and answers, in order."""
    config = DataConfig(path=path, **ALL_TRAIN, **settings)
    data = PromptData(config, lambda raw: ground_truth(raw, config.columns))
    return sorted((prompt.info["question"], prompt.truth) for prompt in data.all_prompts("train"))


EXPECTED = sorted((row["question"], row["answer"]) for row in ROWS)
SAVED = {"state.json": b"{}", "dataset_info.json": b"{}"}
READ = {
    "csv": ({"a.csv": as_csv(ROWS)}, {}),
    "csv with a byte order mark": ({"a.csv": b"\xef\xbb\xbf" + as_csv(ROWS)}, {}),
    "csv with other columns": ({"a.csv": as_csv([row | {"note": "{'a': 1}"} for row in ROWS])}, {}),
    "csv with a column of JSON": (
        {"a.csv": as_csv([{"question": r["question"], "extra_info": json.dumps(r)} for r in ROWS])},
        {"columns": {"answer": "extra_info.answer"}},
    ),
    "csv with spaces in its header": ({"a.csv": as_csv(ROWS).replace(b"question,answer", b"question , answer")}, {}),
    "an arrow file": ({"a.arrow": as_arrow_file(ROWS)}, {}),
    "messages as a text of JSON": (
        {"a.jsonl": as_lines([{"prompt": json.dumps([{"role": "user", "content": r["question"]}]),
                               "answer": r["answer"]} for r in ROWS])}, {},
    ),
    "ground_truth": ({"a.jsonl": as_lines([{"question": r["question"], "ground_truth": r["answer"]} for r in ROWS])},
                     {}),
    "tsv": ({"a.tsv": as_csv(ROWS, "\t")}, {}),
    "csv.gz": ({"a.csv.gz": packed(as_csv(ROWS), "gzip")}, {}),
    "json, a list": ({"a.json": json.dumps(ROWS).encode()}, {}),
    "json, indented": ({"a.json": json.dumps(ROWS, indent=2).encode()}, {}),
    "json, a list within": ({"a.json": json.dumps({"version": "1", "data": ROWS}).encode()}, {}),
    "json of lines": ({"a.json": as_lines(ROWS)}, {}),
    "json.zst": ({"a.json.zst": packed(json.dumps(ROWS).encode(), "zstd")}, {}),
    "jsonl.gz": ({"a.jsonl.gz": packed(as_lines(ROWS), "gzip")}, {}),
    "jsonl.zst": ({"a.jsonl.zst": packed(as_lines(ROWS), "zstd")}, {}),
    "jsonl.bz2": ({"a.jsonl.bz2": packed(as_lines(ROWS), "bz2")}, {}),
    "parquet": ({"a.parquet": as_parquet(ROWS)}, {}),
    "save_to_disk": (
        {"data-00000-of-00002.arrow": as_arrow(ROWS[:1]), "data-00001-of-00002.arrow": as_arrow(ROWS[1:]),
         "cache-1f.arrow": as_arrow([{"question": "stale", "answer": "0"}])} | SAVED, {},
    ),
    "save_to_disk of several splits": (
        {"dataset_dict.json": b"{}", "train/data-00000-of-00001.arrow": as_arrow(ROWS), "train/state.json": b"{}",
         "test/data-00000-of-00001.arrow": as_arrow(NESTED)}, {},
    ),
    "shards of two formats": ({"part-0.csv": as_csv(ROWS[:1]), "part-1.jsonl": as_lines(ROWS[1:])}, {}),
    "a path in jsonl": ({"a.jsonl": as_lines(NESTED)}, {"columns": {"answer": "extra_info.answer"}}),
    "a path in parquet": ({"a.parquet": as_parquet(NESTED)}, {"columns": {"answer": "extra_info.answer"}}),
    "a path to the question": (
        {"a.parquet": as_parquet([{"x": {"y": row["question"]}, "answer": row["answer"]} for row in ROWS])},
        {"columns": {"question": "x.y"}},
    ),
    "text in dictionaries": ({"a.parquet": as_dictionaries(ROWS)}, {}),
    "messages as text": (
        {"a.parquet": as_parquet([{"prompt": json.dumps([{"role": "user", "content": row["question"]}]),
                                   "answer": row["answer"]} for row in ROWS])}, {},
    ),
    "reward_model as text": (
        {"a.jsonl": as_lines([{"prompt": row["question"], "reward_model": json.dumps({"ground_truth": row["answer"]})}
                              for row in ROWS])}, {},
    ),
    "an answer beside reward_model": (
        {"a.jsonl": as_lines([row | {"reward_model": {"ground_truth": "other"}} for row in ROWS])},
        {"columns": {"answer": "answer"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_forms_that_are_read(tmp_path, name):
    files, settings = READ[name]
    assert load(written(tmp_path, files), **settings) == EXPECTED


REFUSED = {
    "csv, a cell too many": ({"a.csv": b"question,answer\nq,1\nq, 2,2\n"}, r"row 2: 3 cells where the header has 2; "
                             "quote what has commas"),
    "csv without a header": ({"a.csv": b"What is it?,1\n"}, r"none of the columns .*it has: What is it\?, 1"),
    "csv, a column twice": ({"a.csv": b"question,answer,answer\nq,1,2\n"}, "two columns 'answer'; rename one"),
    "csv of Python's lists": ({"a.csv": b"prompt,answer\n\"[{'role': 'user', 'content': 'q'}]\",1\n"},
                              r"row 1: prompt holds Python's spelling of a structure; save the data as \.parquet"),
    "csv, an open quote": ({"a.csv": b'question,answer\nq,1\n"q,2\n'}, "cannot be read after row 1: unexpected end"),
    "csv, an empty answer": ({"a.csv": b"question,answer\n,1\n"}, "row 1: question is empty"),
    "csv, empty": ({"a.csv": b""}, "it has: none"),
    "json, cut off": ({"a.json": json.dumps(ROWS).encode()[:-9]}, r"data\.path: .*a\.json is no JSON"),
    "json, by column": ({"a.json": json.dumps({"question": {"0": "q"}, "answer": {"0": "1"}}).encode()},
                        "row 1: question is neither text nor a list of messages but dict"),
    "json, a number": ({"a.json": b"7"}, r"holds no list of rows; save it as \.jsonl"),
    "json, a list of texts": ({"a.json": b'["q"]'}, "row 1: not an object with columns but str"),
    "gz that is none": ({"a.jsonl.gz": as_lines(ROWS)}, "cannot be read: zlib inflate failed"),
    "xlsx": ({"a.xlsx": b"PK"}, r"data\.path: .* cannot be read: \.jsonl, \.json, \.csv, \.tsv, \.parquet and \.arrow"),
    "arrow, cut off": ({"a.arrow": as_arrow(ROWS)[:-60]}, r"cannot be read( after row \d)? as Arrow"),
    "latin-1": ({"a.csv": "question,answer\né?,4\n".encode("latin-1")},
                "row 1: the prompt is no valid text; save the data in UTF-8"),
    "csv with semicolons": ({"a.csv": as_csv(ROWS, ";")}, "cells are separated by ';': save it with commas"),
    "contradictions": ({"a.jsonl": as_lines([ROWS[0], ROWS[0] | {"answer": "5"}])},
                       "has no usable row: 2 rows answer the same questions differently"),
    "arrow without answers": ({"a.arrow": as_arrow([{"label": 1}])}, "it has: label"),
    "jsonl that is one list": ({"a.jsonl": json.dumps(ROWS).encode()}, r"one list of rows; let its name end in \.json"),
    "jsonl that is a list of lines": ({"a.jsonl": json.dumps(ROWS, indent=1).encode()}, r"let its name end in \.json"),
    "jsonl in UTF-16": ({"a.jsonl": as_lines(ROWS).decode().encode("utf-16")}, "it is UTF-16 text; save it as UTF-8"),
    "csv in UTF-16": ({"a.csv": as_csv(ROWS).decode().encode("utf-16")}, "it is UTF-16 text; save it as UTF-8"),
    "jsonl that gzip wrote": ({"a.jsonl": packed(as_lines(ROWS), "gzip")}, r"gzip; let its name end in \.gz"),
    "parquet called jsonl": ({"a.jsonl": as_parquet(ROWS)}, r"it is parquet; let its name end in \.parquet"),
    "a pointer of Git LFS": ({"a.parquet": b"version https://git-lfs.github.com/spec/v1\noid x\n"}, "`git lfs pull`"),
    "a spreadsheet": ({"a.csv": b"PK\x03\x04"}, r"or a spreadsheet; save the data as \.csv or \.jsonl"),
    "parquet, a column twice": (
        {"a.parquet": as_twice(ROWS)}, "two columns 'answer'; rename one",
    ),
    "json, deep": ({"a.json": b"[" * 100_000}, r"a\.json is no JSON \(nested too deeply\)"),
    "json, where it ends": ({"a.json": b'[\n{"question": "q"\n'}, "it ends too early"),
    "json, where it is wrong": ({"a.json": b'[{"a": 1},\n {"b" 2}]'}, "at character 7 of line 2: '2}]'"),
    "a path that leads nowhere": ({"a.jsonl": as_lines(NESTED)},
                   r"row 1, row 2: no answer, neither .* nor a column 'answer'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_are_refused(tmp_path, name):
    files, says = REFUSED[name]
    with pytest.raises(DataError, match=says):
        load(written(tmp_path, files))


@pytest.mark.parametrize("question", ['[{"a": 1}] is JSON?', '[{"a": 1}]', "[{", '[{"role": 1}, 2]'])
def test_a_question_about_json_stays_text(tmp_path, question):
    assert load(written(tmp_path, {"a.jsonl": as_lines([{"question": question, "answer": "4"}])})) == [(question, "4")]


@pytest.mark.parametrize("field", ["prompt", "question", "context", "answer"])
def test_a_named_column_that_no_row_has_is_refused(tmp_path, field):
    """Also one without which rows could be read."""
    path = written(tmp_path, {"a.jsonl": as_lines(ROWS)})
    config = DataConfig(path=path, columns={field: "anser.x"}, **ALL_TRAIN)
    says = rf"data\.columns\.{field}: no row of .* has anything in 'anser\.x'; there are: question, answer$"
    if field == "question":
        says = "row 1, row 2: no column 'prompt' or 'anser.x' .* there are: question, answer"
    with pytest.raises(DataError, match=says):
        PromptData(config, lambda raw: ground_truth(raw, config.columns, required=False))
    resolved = DataConfig(path=path, columns=Columns().model_dump(), **ALL_TRAIN)
    assert PromptData(resolved, lambda raw: ground_truth(raw, resolved.columns)).report.train == 2


def test_what_a_path_means():
    row = {"a": {"b": [{"c": 1}, 2]}, "a.b": 3, "text": '{"d": {"e": "f"}}', "none": None}
    assert [value_at(row, name) for name in ("a.b", "a.b.0.c", "a.b.7", "text.d.e", "none.x", "x", "a.x.y")] == [
        3, 1, None, "f", None, None, None
    ]  # fmt: skip
    assert ground_truth({"extra_info": {"x": 0}}, Columns(answer="extra_info.x")) == 0


def test_a_small_limit_of_rows_does_not_break_a_list(tmp_path):
    """A list in one line that is longer than a row may be."""
    path = written(tmp_path, {"a.json": json.dumps(ROWS * 50).encode()})
    assert load(path, max_row_bytes=100) == EXPECTED


# What verl's preprocessors and the authors of data sets write, made by hand


def verl(source, question, truth, /, ability="math", style="rule", **extra) -> dict:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question}],
        "ability": ability,
        "reward_model": {"style": style, "ground_truth": truth},
        "extra_info": {"split": "train", "index": 0} | extra,
    }


GSM8K = verl(
    "openai/gsm8k",
    'Ann has 3 hens, each lays 2 eggs. How many? Let\'s think step by step and output the final answer after "####".',
    "6", answer="3 * 2 = <<3*2=6>>6\n#### 6", question="Ann has 3 hens, each lays 2 eggs. How many?",
)  # fmt: skip
MATH = verl(
    "DigitalLearningGmbH/MATH-lighteval",
    "What is $\\frac{1}{2}+\\frac14$? Let's think step by step and output the final answer within \\boxed{}.",
    "\\frac{3}{4}",
)
DAPO = verl(
    "math_dapo",
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 17 times 2?\n\nRemember to put "
    'your answer on its own line after "Answer:".',
    "34", ability="MATH", style="rule-lighteval/MATH_v2",
)  # fmt: skip
SKYWORK = verl(
    "train-math-numinamath1.5_amc_aime", "How many primes lie below 10? Put the answer within \\boxed{}.", '["4"]',
    model_difficulty={"DeepSeek-R1-Distill-Qwen-7B": 3},
)  # fmt: skip
DEEPSCALER = {"problem": "What is $2^5$?", "answer": "32", "solution": "$2^5 = \\boxed{32}$"}
DEEPSCALER_VERL = verl("", "What is $2^5$? Let's think step by step.", "32")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("row", "answer"),
    [(GSM8K, "6"), (MATH, "\\frac{3}{4}"), (DAPO, "34"), (SKYWORK, "4"), (DEEPSCALER, "32"), (DEEPSCALER_VERL, "32")],
    ids=["GSM8K", "MATH", "DAPO-Math-17k", "Skywork-OR1", "DeepScaleR", "DeepScaleR of verl"],
)
def test_mathematics_as_it_is_preprocessed(tmp_path, row, answer, suffix):
    """The own answer of each row gets 1, another one 0."""
    content = as_parquet([row]) if suffix == ".parquet" else as_lines([row])
    path = written(tmp_path, {f"train{suffix}": content})
    task = MathConfig(data={"path": path, **ALL_TRAIN}).build()
    [prompt] = task.prompts("train", 1)
    assert prompt.truth == [answer]
    assert prompt.messages[-1]["content"] == (row["prompt"][0]["content"] if "prompt" in row else row["problem"])
    right = task.right_response(prompt)
    wrong = type(right)("\\boxed{5}", True)
    assert [score.reward for score in task.score([prompt] * 2, [right, wrong])] == [1.0, 0.0]
    task.close()


STDIN = {"inputs": ["3\n"], "outputs": ["6\n"]}
CASES = [{"input": "3\n", "output": "6\n", "testtype": "stdin"}]
CODE = {
    "DeepCoder": {"problem": "Read n, print 2n.", "tests": json.dumps(CASES), "starter_code": "", "metadata": "{}"},
    "DeepCoder, TACO": {"problem": "Read n, print 2n.", "tests": json.dumps(STDIN)},
    "DeepCoder of verl": verl("taco", "Read n, print 2n.", json.dumps(STDIN), ability="code"),
    "Skywork-OR1 code": verl("train-code-taco", "Read n, print 2n.", json.dumps(STDIN), ability="code"),
}


@pytest.mark.parametrize("name", CODE)
def test_programs_as_they_are_preprocessed(tmp_path, name):
    path = written(tmp_path, {"train.parquet": as_parquet([CODE[name]])})
    task = CodeConfig(data={"path": path, **ALL_TRAIN}, sandbox="subprocess").build()
    [prompt] = task.prompts("train", 1)
    assert prompt.truth == {"kind": "script", "inputs": ["3\n"], "outputs": ["6\n"]}
    assert prompt.messages[-1]["content"].startswith("Read n, print 2n.")
