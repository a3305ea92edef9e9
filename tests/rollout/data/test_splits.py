"""Splits, training batches, evaluation prompts, subsamples, the report and the fingerprint."""

from pathlib import Path

import pytest

from layersweep.rollout.data.data_files import DataError
from layersweep.rollout.data.prompt_data import split_of
from tests.helpers.prompt_files import ALL_TRAIN, GOOD, jsonl, load, numbered


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
