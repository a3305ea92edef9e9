"""Prompt data: layouts, bad rows, splits, batches, decontamination and the fingerprint."""

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from layersweep.rollout.data.decontamination import contaminated, ngrams
from layersweep.rollout.data.prompt_data import Columns, DataConfig, PromptData, ground_truth, split_of
from layersweep.rollout.data.row_readers import DataError


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
    assert prompt.messages == ({"role": "user", "content": "1 + 1?"},)
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
    ],
)
def test_contradictions_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        DataConfig(**settings)


def test_missing_path_and_folder_without_data(tmp_path):
    with pytest.raises(DataError, match=r"data\.path: .*nowhere\.jsonl does not exist"):
        DataConfig(path=str(tmp_path / "nowhere.jsonl")).files()
    with pytest.raises(DataError, match=r"no \.parquet or \.jsonl"):
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
    path = jsonl(tmp_path / "a.jsonl", GOOD, {"question": " fine? ", "answer": "no"}, GOOD)
    data = load(path, **ALL_TRAIN)
    assert (data.report.duplicates, data.report.train) == (2, 1)
    assert data.prompts("train", 1)[0].truth == "yes", "the first one counts"


def test_fingerprint_follows_content(tmp_path):
    one = load(jsonl(tmp_path / "a.jsonl", GOOD)).fingerprint()
    assert load(jsonl(tmp_path / "b.jsonl", GOOD | {"more": 1})).fingerprint() == one
    assert load(jsonl(tmp_path / "c.jsonl", GOOD | {"answer": "no"})).fingerprint() != one
    assert load(jsonl(tmp_path / "d.jsonl", GOOD), template="Q: {question}").fingerprint() != one


# Decontamination


EVALUATION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."


def test_ngrams_by_hand():
    assert ngrams("A b, c  d!", 3) == {"a b c", "b c d"}
    assert ngrams("3 + 4 =", 13) == {"3 + 4 ="}
    assert ngrams(" Two  words", 2) == {"two words"}


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


def test_own_held_out_prompts_decontaminate_too(tmp_path):
    # Twenty variants share 20 words: whichever are held out, those that are left to train are leaks of them.
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen {}"
    rows = [{"question": text.format(i), "answer": "1"} for i in range(10)]
    data = load(jsonl(tmp_path / "a.jsonl", *rows), selection_share=0.5, final_share=0.0)
    assert 0 < data.report.selection < 10
    assert data.report.train == 0
    assert data.report.contaminated == 10 - data.report.selection
