"""Equality of mathematical answers as strings and numbers, before any computer algebra."""

import re

from .math_notation import canonical, number, split_list

_CHOICE = re.compile(r"(?:\(([A-J])\)[.:]?|([A-J])(?:\)[.:]?|[.:](?= |$)|$))\s*(.*)")
_EQUALS = re.compile(r"(?<![<>!=\\])=(?!=)|\\approx")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])")
_LABEL = re.compile(
    r"(?!Not|No|Under|Over|Above|Below|Minus|Negative|January|February|March|April|May|June|July|August|September|October"
    r"|November|December)[A-Z][a-z]+:? "
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in|to|cup|cap)(?![A-Za-z])")
_NAME = re.compile(r"\\?[A-Za-z][A-Za-z_'{}\d ]*(?:\([A-Za-z, ]*\))?\s*")
_NUMERAL = re.compile(r"\(?-?[A-F]*\d[\dA-F]*\)?_\{?\d{1,2}\}?")
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
_COMMA = re.compile(r";|,(?!\d{3}(?!\d))")
_RANGE = re.compile(r"\d\s*[–—]\s*\d")
_NUMBERS_IN_A_ROW = re.compile(r"(?<!_)\d\s+\d")
"""Two numbers, but not the base of a logarithm and its argument, `\\log_2 8`."""
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\*?\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}")


def plainly_equal(right: str, given: str) -> bool | None:
    """Compare two answers as strings and numbers; None where equality takes mathematics."""
    one, other = _key(canonical(right)), _key(canonical(given))
    if one == other:
        return bool(one)
    if _RANGE.search(right) or _RANGE.search(given):
        return False
    if (verdict := _same_choice(right, given)) is not None:
        return verdict
    right, given = sides(right, given)
    if _key(right) == _key(given):
        return bool(right)
    values = number(right), number(given)
    if None not in values:
        # Decimals that differ may still be roundings of each other; whole numbers may not.
        whole = all(value.denominator == 1 for value in values)
        return values[0] == values[1] or (False if whole else None)
    if (percent := right.endswith("%")) != given.endswith("%"):
        plain, share = (given, right) if percent else (right, given)
        value, hundredths = number(plain), number(share.removesuffix("\\%"))
        if value is not None and hundredths is not None:
            return value in (hundredths, hundredths / 100) or None
    if values[0] is not None and re.fullmatch(r"-?\d+,\d+", given):  # a decimal comma
        return number(given.replace(",", ".")) == values[0]
    if values != (None, None) and _INEQUALITY.search(right + given):
        return False
    if _NUMERAL.fullmatch(right) or _NUMERAL.fullmatch(given):
        return False  # math-verify does not see the base
    if _NUMBERS_IN_A_ROW.search(f"{right};{given}"):
        return False  # math-verify multiplies the two
    if _is_prose(right) and _is_prose(given):
        return False  # math-verify multiplies the letters, in any order
    several = len(split_list(right)), len(split_list(given))
    if 1 in several and max(several) > 1 and any(value is not None for value in values):
        return False
    return None


def sides(right: str, given: str) -> tuple[str, str]:
    """Bring both answers into plain notation.

    Leaves out what only one of them says: the letter of a choice, a label, the name of a value.
    """
    one, other = canonical(right), canonical(given)
    letter, rest = _choice(one)
    given_letter, given_rest = _choice(other)
    if letter and rest and not given_letter:
        one = canonical(rest)
    if given_letter and given_rest and not letter:
        other = canonical(given_rest)
    if number(one) is not None and (label := _LABEL.match(other)):
        other = canonical(other[label.end() :])
    name, value = _named(one)
    given_name, given_value = _named(other)
    if given_value is not None and value is None and not _RELATION.search(one):
        other = canonical(given_value)
    elif value is not None and given_value is None and _NAME.fullmatch(name) and not _RELATION.search(other):
        one = canonical(value)
    return one, other


def _key(answer: str) -> str:
    """Remove the spaces that change nothing: all but those between digits."""
    answer = re.sub(r"\(([\dA-F]+)\)(?=_)", r"\1", answer)
    answer = re.sub(r"([_^])\{(\w)\}", r"\1\2", answer)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", answer)


def _same_choice(right: str, given: str) -> bool | None:
    letter, rest = _choice(canonical(right))
    given_letter, given_rest = _choice(canonical(given))
    if letter and given_letter and (rest == "" or given_rest == "" or letter != given_letter or rest == given_rest):
        return letter == given_letter
    return None


def _choice(answer: str) -> tuple[str, str]:
    """Split "(B) 18" into letter and content; "" for what is not there."""
    match = _CHOICE.fullmatch(answer)
    return (match[1] or match[2], match[3]) if match else ("", "")


def _named(answer: str) -> tuple[str, str | None]:
    """Split a single equation into what is before the first and after the last equals sign; "", None for others."""
    several = len(split_list(answer)) > 1 or _COMMA.search(_BRACKETS.sub("", answer))
    if several or _RELATION.search(answer) or not _EQUALS.search(answer):
        return "", None
    pieces = _EQUALS.split(answer)
    return pieces[0], pieces[-1]


def _is_prose(answer: str) -> bool:
    return bool(_PROSE.search(_ENVIRONMENT.sub("", answer)))
