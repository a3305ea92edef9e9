"""Right answers as data sets have them, made into what a response can match."""

import re
import unicodedata

MAX_PROSE_WORDS = 10
"""An answer with more words outside its formulas is an explanation or a proof, which no response repeats."""

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_FORMULA = re.compile(r"\$\$.*?\$\$|(?<!\\)\$.*?(?<!\\)\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{.*\\end\{\w+\}", re.DOTALL)
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[A-Za-z|]*\})*")
_WORD = re.compile(r"[A-Za-z]{2,}")
_UNIT = re.compile(r"(-?\d[\d.,/:]*)\s*\([A-Za-z][^()]*\)")


def readable(text: str) -> str:
    """Return an answer without characters that cannot be seen or typed: zero-width ones go, `2½` becomes `2 1/2`; of
    `9 (apples)`, the unit in brackets goes too."""
    text = "".join(map(_spelled, _INVISIBLE.sub("", text)))
    text = re.sub(r"(\d)\x00", r"\1 ", text).replace("\x00", "").strip()
    return unit.group(1) if (unit := _UNIT.fullmatch(text)) else text


def is_prose(text: str) -> bool:
    """Tell whether an answer is sentences instead of a value."""
    return len(_WORD.findall(_COMMAND.sub(" ", _FORMULA.sub(" ", text)))) > MAX_PROSE_WORDS


def _spelled(character: str) -> str:
    """Return a vulgar fraction's numbers behind a mark for its beginning; any other character itself."""
    if not unicodedata.decomposition(character).startswith("<fraction>"):
        return character
    return "\x00" + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
