"""Training rows that evaluation prompts are in: dropped, and counted."""

import random

import pytest

from layersweep.rollout.data.data_files import DataError
from layersweep.rollout.data.decontamination import contaminated, ngrams
from tests.helpers.prompt_files import ALL_TRAIN, GOOD, jsonl, load

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
    with pytest.raises(DataError, match=r"has 1 train prompt, 2 were asked for .*1 contaminated.*decontaminate_ngram"):
        data.prompts("train", 2)
