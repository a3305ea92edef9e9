"""Numbers in English words, such as `twenty-one`, `one hundred and five` and `three quarters`."""

import re
from fractions import Fraction

_ONES = """zero one two three four five six seven eight nine
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
          "ninth": 9, "tenth": 10}  # fmt: skip
_VALUES = {word: value for value, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}

_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{'|'.join(_ONES[1:10])}))?|(?:{'|'.join(_ONES)}))\b"
_BELOW_1000 = rf"(?:(?:a|{_BELOW_100})[\s-]+hundred\b(?:\s+(?:and\s+)?{_BELOW_100})?|{_BELOW_100})"
_WHOLE = rf"(?:{_BELOW_1000}[\s-]+(?:{'|'.join(_SCALES)})\b(?:,?\s+(?:and\s+)?(?={_BELOW_1000}))?)*(?:{_BELOW_1000})?"
_PART = rf"(?P<above>an?|{_BELOW_100})[\s-]+(?P<below>half|halves|(?:{'|'.join(_PARTS)})s?)\b"
_NUMBER = re.compile(
    rf"\s*(?P<sign>(?:minus|negative)\s+)?(?:{_PART}|(?P<whole>(?=\w){_WHOLE})"
    rf"(?:\s+and\s+{_PART.replace('<', '<more_')})?)(?![\w-])",
    re.IGNORECASE,
)


def leading_number(text: str) -> tuple[Fraction, str] | None:
    """Return the number in words that a text begins with, and the text behind it; None where it begins with none."""
    match = _NUMBER.match(text)
    if match is None or not (match["whole"] or match["above"]):
        return None
    value = Fraction(_whole(match["whole"] or "zero"))
    for above, below in ((match["above"], match["below"]), (match["more_above"], match["more_below"])):
        if above:
            part = "half" if below.lower() == "halves" else below.lower().removesuffix("s")
            value += Fraction(1 if above.lower() in ("a", "an") else _whole(above), _PARTS[part])
    return (-value if match["sign"] else value), text[match.end() :]


def _whole(words: str) -> int:
    total = current = 0
    for word in re.findall(r"[a-z]+", words.lower()):
        if word in _SCALES:
            total, current = total + current * _SCALES[word], 0
        elif word == "hundred":
            current = (current or 1) * 100
        else:
            current += _VALUES.get(word, 0)
    return total + current
