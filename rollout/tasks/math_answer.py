"""The final answer in a text, and when two answers are plainly equal or plainly different as strings.

Everything here takes time linear in the text.
"""

import re
from fractions import Fraction

MAX_ANSWER_CHARS = 500
"""Nothing longer is a final answer: it is a derivation, or garbage."""

MAX_DEPTH = 20
"""Of brackets within brackets; parsers of LaTeX need exponential time on more."""

_PHRASE = re.compile(r"\banswer\b[\s*]*(?:is|:|=)[\s*:]*", re.IGNORECASE)
_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\s?\\?%)?")
_DOLLARS = re.compile(r"(?<!\\)\$([^$]+)(?<!\\)\$")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_RATIONAL = re.compile(r"-?(?:\d+/0*[1-9]\d*|\d+\.?\d*|\.\d+)")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d*)?")


def marked_answer(text: str) -> str | None:
    r"""The answer that a text marks as such: the last `\boxed{}`, else the last `####`, else "answer is" or "answer:".

    None when there is no mark; empty when what it marks is no answer.
    """
    if (start := max(text.rfind("\\boxed"), text.rfind("\\fbox"))) >= 0:
        return _usable(_braced(text[start:])) or ""
    if (start := text.rfind("####")) >= 0:
        return _usable(text[start + 4 :].strip().partition("\n")[0]) or ""
    if phrases := list(_PHRASE.finditer(text)):
        return _usable(_SENTENCE_END.split(text[phrases[-1].end() :].partition("\n")[0])[0]) or ""
    return None


def final_answer(text: str, finished: bool) -> str | None:
    """The answer in a response: the marked one, else what the last line ends with.

    A response that was cut at the token limit has no last line, what stands there is somewhere in the working: only a
    marked answer counts.
    """
    answer = marked_answer(text)
    if answer is not None or not finished:
        return answer or None
    line = text.strip().rpartition("\n")[2].strip()
    if len(_WORD.findall(line[: MAX_ANSWER_CHARS + 1])) <= 1:
        return _usable(line)  # a bare expression, perhaps with its unit
    if formulas := _DOLLARS.findall(line):
        return _usable(formulas[-1])
    numbers = _NUMBER.findall(line)
    return _usable(numbers[-1]) if numbers else None


def normal_form(answer: str) -> str:
    """An answer without what never changes its meaning: dollars, sizes of brackets, spaces but those between digits."""
    answer = answer.strip().strip("$*").strip()
    answer = re.sub(r"\\[\[\]()]|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\[!,;: ]|~", "", answer)
    answer = re.sub(r"\\[dtc]frac", r"\\frac", answer)
    answer = re.sub(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r"\1", answer)
    answer = re.sub(r"\^\{?\\circ\}?|\\\$|(?<!\d)\s+|\s+(?!\d)", "", answer.replace("{,}", ",")).removesuffix(".")
    if _PLAIN_NUMBER.fullmatch(answer):
        return answer.replace(",", "").removeprefix("+")
    return answer.lower() if len(answer) > 1 and answer.isalpha() else answer


def plainly_equal(right: str, given: str) -> bool | None:
    """Whether two answers are equal, where their strings already tell; None where that takes mathematics."""
    right, given = normal_form(right), normal_form(given)
    if right == given:
        return bool(right)
    if not (_RATIONAL.fullmatch(right) and _RATIONAL.fullmatch(given)):
        return None
    one, other = Fraction(right), Fraction(given)
    # Decimals that differ may still be roundings of each other; whole numbers may not.
    return one == other or (None if one.denominator > 1 or other.denominator > 1 else False)


def _braced(text: str) -> str:
    r"""What stands in the braces of the command that a text begins with; the next word where it has none."""
    start = text.find("{")
    head = text[:start] if start >= 0 else text
    if start < 0 or len(head.split()) != 1:
        words = text.split(maxsplit=2)
        return words[1] if len(words) > 1 else ""
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at]
    return ""


def _usable(answer: str) -> str | None:
    r"""The answer, unless it is none: too long, without a letter or digit, or with braces that do not match."""
    answer = answer.strip()
    if len(answer) > MAX_ANSWER_CHARS or not (any(c.isalnum() or c in "∅∞" for c in answer) or "\\{" in answer):
        return None
    braces = depth = 0
    for c in re.sub(r"\\[{}]", "", answer):
        braces += (c == "{") - (c == "}")
        depth += (c in "([{") - (c in ")]}")
        if braces < 0 or depth > MAX_DEPTH:
            return None
    return answer if braces == 0 else None
