"""Numbers in English words."""

from fractions import Fraction

import pytest

from layersweep.rollout.tasks.number_words import leading_number

READ = {
    "twelve": (12, ""),
    "Twenty-One euros": (21, " euros"),
    "one hundred and five": (105, ""),
    "a hundred": (100, ""),
    "seven hundred thousand and one": (700_001, ""),
    "two million, one hundred five thousand, two hundred and three": (2_105_203, ""),
    "minus seven": (-7, ""),
    "three quarters": (Fraction(3, 4), ""),
    "a half": (Fraction(1, 2), ""),
    "two and a half hours": (Fraction(5, 2), " hours"),
    "five and six": (5, " and six"),
    "twenty, one": (20, ", one"),
}
NONE = ["", "and", "a", "a cat", "half", "onesome", "one-way", "twelfth", "tent", "twenty-"]


@pytest.mark.parametrize("text", READ)
def test_what_a_text_begins_with(text):
    assert leading_number(text) == READ[text]


@pytest.mark.parametrize("text", NONE)
def test_words_that_are_no_number(text):
    assert leading_number(text) is None
