"""One notation for mathematical answers: Unicode, LaTeX's synonyms, numbers of all locales and units made plain.

Everything here takes time linear in the text, but for exponents, which are bounded.
"""

import re
import unicodedata
from fractions import Fraction

from .number_words import leading_number

MAX_EXPONENT = 400
"""Largest power of ten that is multiplied out; larger ones are left to math-verify."""

_SYMBOLS = {
    **dict.fromkeys("−–—‒‐‑﹣－", "-"),
    **dict(zip("×÷·⋅∗∞∅≤≥≠≈∪∩∈±√°′“”‘’", [
        "\\times ", "/", "\\cdot ", "\\cdot ", "*", "\\infty ", "\\emptyset ", "\\le ", "\\ge ", "\\ne ", "\\approx ",
        "\\cup ", "\\cap ", "\\in ", "\\pm ", "\\sqrt", "^\\circ ", "'", '"', '"', "'", "'",
    ], strict=True)),
}  # fmt: skip
_ROOT_SIGN = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])")
_SYNONYMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\\\s*\[[\d.]+\s*[a-z]{2}\]", r"\\\\"),
        (r"(?<!\\)\\[\[\]()!]|\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-z])|\\(?:thin|med|thick)space", " "),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\[dt]binom(?![a-z])", r"\\binom"),
        (r"\\binom\s*(\d)\s*(\d)(?!\d)", r"\\binom{\1}{\2}"),
        (r"(?<=\d)\s*\^\s*\{?\s*\\(?:text|mathrm|textrm)\s*\{\s*(st|nd|rd|th)\s*\}\s*\}?", r"\1"),
        (r"(?<=\d),\s*\\text\s*\{\s*(?:as|since|because|where)\b[^{}]*\}$", ""),
        (r"(?<=\d)\{:\}(?=\d)", ":"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\(?:varnothing|O)(?![a-z])", r"\\emptyset"),
        (r"\\leqs?lant|\\leq(?![a-z])", r"\\le"),
        (r"\\geqs?lant|\\geq(?![a-z])", r"\\ge"),
        (r"\\neq(?![a-z])", r"\\ne"),
        (r"\s*\^\s*\{?\s*(?:\\circ|\\degree|°)\s*\}?|\s*\\degree(?![a-z])", r"^\\circ "),
        (r"\s*(?<!\\)%|\s*\\%|\s*\b(?:percent|per cent|percentage(?: points?)?|pct)\b", r"\\%"),
        (r"(?<=\d)\{,\}(?=\d)", ","),
        (r"(?<![\\A-Za-z])(ln|log|sin|cos|tan|pi|theta)(?![A-Za-z])", r"\\\1"),
        (r"\\\$|(?:\bUS)?\$|[€£¥₹₩₽₺₫₴¢]|^\s*(?:USD|EUR|GBP|INR|CAD|AUD|Rs\.?)(?=\s*\d)", " "),
    ]
]  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textnormal|textsf|mathrm|mathbf|mathit|mathsf|boldsymbol|bm"
    r"|underline|mbox|operatorname)\s*\{([^{}]*)\}"
)
_FINAL_TEXT = re.compile(r"(?<=[\d})\]])\s*\\(?:text|textrm|textit|mathrm|mbox)\s*\{([^{}]*)\}(?:\s*\^\s*\{?\d\}?)?$")
_GROUPED = [
    (re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"), ","),
    (re.compile(r"\d{1,2}(?:,\d{2})*,\d{3}(?:\.\d+)?"), ","),  # lakhs and crores
    (re.compile(r"\d{1,3}(?: \d{3})+(?:[.,]\d+)?"), " "),
    (re.compile(r"\d{1,3}(?:'\d{3})+(?:\.\d+)?"), "'"),
    (re.compile(r"\d+(?:_\d{3})+(?:\.\d+)?"), "_"),
    (re.compile(r"\d{1,3}(?:\.\d{3})(?:\.\d{3})+(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d+"), "."),
]
"""Numbers with a sign between their thousands, and the sign."""
_SCIENTIFIC = re.compile(
    r"(?:(?P<plain>\d*\.?\d+)[eE]|(?:(?P<times>\d*\.?\d+)\s*(?:\\times|\\cdot|\*|x)\s*)?10\s*(?:\^|\*\*)\s*)"
    r"[{(]?(?P<exponent>[-+]?\d{1,9})[)}]?"
)
_MIXED = re.compile(r"(\d+)(?:\s+|\s*(?=\\))(?:(\d+)\s*/\s*(\d+)|\\frac\{(\d+)\}\{(\d+)\})")
_FRACTION = re.compile(
    r"(?:(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)|\\frac\{\s*(-?\d+(?:\.\d+)?)\s*\}\{\s*(\d+(?:\.\d+)?)\s*\})"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))|\((\d+)\))")
_DECIMAL = re.compile(r"\d+\.?\d*|\.\d+")
_MULTIPLES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_UNITS = (
    "km m cm mm nm mi ft in yd kg g mg lb lbs oz l ml s h hr hrs min sec ms mph kph kmph kmh rpm hz khz mhz j kj n w "
    "kw kwh v mv a ma k c f pa kpa mol gal sq cu pts yrs yr usd eur gbp cad aud inr rs am pm p deg rad db gb mb kb"
).split()
_NO_UNITS = {
    "and", "or", "to", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "mod", "inf",
    "infinity", "if", "otherwise", "choose", "not", "factorial", "squared",
    "cubed", "where", "for", "is", "base", "remainder", "union", "but",
}  # fmt: skip
_UNIT = re.compile(
    r"(?P<quantity>[^A-Za-z\\]*\d[^A-Za-z\\]*?|.*(?:\}|\\pi|\d\)|\d))(?P<gap>\s*-?\s*)(?P<unit>\(?[A-Za-z][A-Za-z./*^{}\d\s()'-]*)"
)
_ONE_LINE = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|equation\*?|split)\}|&(?=\s*=)")
"""Environments of equations, and what aligns them, which say nothing about a single line."""
_OUTWARD = re.compile(r"(?=\]|.*\[$)([\[\]])([^\[\]]*[,;][^\[\]]*)([\[\]])")
"""An interval whose brackets look away from what it leaves out, as French schools write it: `]0, 1]` is `(0, 1]`."""
_NO_SOLUTION = re.compile(r"(?:there (?:is|are|exists?) )?no (?:real )?solutions?(?: exists?)?")
_WORDS = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def plain_unicode(text: str) -> str:
    """Write Unicode's signs as ASCII or LaTeX: minus signs, vulgar fractions, superscripts, digits of any script."""
    if text.isascii():
        return text
    text = _ROOT_SIGN.sub(r"\\sqrt{\1}", text)
    out: list[str] = []
    raised = ""
    for char in text:
        kind = unicodedata.decomposition(char).partition(">")[0].lstrip("<")
        script = {"super": "^", "sub": "_"}.get(kind, "") if char not in "ªº™" else ""
        if raised and script != raised:
            out.append("}")
        if script:
            out.append(("" if raised == script else script + "{") + plain_unicode(unicodedata.normalize("NFKC", char)))
        elif kind == "fraction":
            out.append(f" {unicodedata.normalize('NFKC', char).replace(chr(0x2044), '/')}")
        else:
            out.append(_plain(char))
        raised = script
    return "".join(out) + ("}" if raised else "")


def _plain(char: str) -> str:
    if char.isascii():
        return char
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    category = unicodedata.category(char)
    if category == "Cf" or char == "\ufe0f":  # zero width; the sign that has the one before it drawn as an emoji
        return ""
    if category == "So" and unicodedata.normalize("NFKC", char) == char:  # an emoji
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    name = unicodedata.name(char, "")
    if name.startswith("GREEK SMALL LETTER ") and name.count(" ") == 3:
        return f"\\{name.split()[-1].lower()} "
    if category == "Zs":
        return " "
    return unicodedata.normalize("NFKC", char)


def split_list(answer: str) -> list[str]:
    """Split a list such as "2, 100", "x and y", "1;2". A comma without a space may be part of a number."""
    parts, depth, start, at = [], 0, 0, 0
    breaks = {m.start(): m.end() for m in re.finditer(r",\s+(?:and|or)\s+|,\s+|;\s*|\s+(?:and|or)\s+", answer)}
    while at < len(answer):
        if depth == 0 and at in breaks:
            parts.append(answer[start:at])
            start = at = breaks[at]
            continue
        depth += (answer[at] in "([{") - (answer[at] in ")]}")
        at += 1
    parts.append(answer[start:])
    return [part for part in map(str.strip, parts) if part]


def canonical(answer: str) -> str:
    """Write an answer in plain notation, without what does not change its value: dollars, bracket sizes, units."""
    text = plain_unicode(answer).strip().strip("$*`").strip()
    text = re.sub(r"^\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1 ", text)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"^(?:\\approx|\\sim|=)\s*", "", text.strip())
    if "\\\\" not in text:
        text = _ONE_LINE.sub("", text)
    if interval := _OUTWARD.fullmatch(text):
        text = f"{'(' if interval[1] == ']' else '['}{interval[2]}{')' if interval[3] == '[' else ']'}"
    if (named := leading_number(_unwrapped(text))) is not None and _is_nothing_or_unit(named[1].strip(" .")):
        text = f"{named[0]}{named[1]}"
    if _NO_SOLUTION.fullmatch(_tidy(_unwrapped(text)).lower()):
        return "\\emptyset"
    if re.fullmatch(r"\\emptyset|\\\{\s*\\\}|\{\s*\}", text.strip()):
        return "\\emptyset"
    parts = split_list(_TEXT.sub(lambda m: f" {m[1]} " if m[1].strip() in ("and", "or", ",") else m[0], text))
    if len(parts) == 1:
        return _element(parts[0])
    done, units = zip(*map(_without_unit, parts), strict=True)
    if len({unit for unit in units[:-1] if unit} | {units[-1]}) > 1:
        return _tidy(_unwrapped(text))  # 3 hours and 20 minutes are one answer
    return ", ".join(map(_number, done))


def number(answer: str) -> Fraction | None:
    """Compute the exact value of a canonical answer; None unless it is a single number without a percent sign."""
    sign, digits = _signed(answer)
    if match := _FRACTION.fullmatch(digits):
        above, below = Fraction(match[1] or match[3]), Fraction(match[2] or match[4])
        return sign * above / below if below else None
    return sign * Fraction(digits) if _DECIMAL.fullmatch(digits) else None


def _element(text: str) -> str:
    return _number(_without_unit(text)[0])


def _unwrapped(text: str) -> str:
    return _TEXT.sub(lambda m: f" {m[1]} ", text)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip()
    return text.lower() if len(text) > 1 and text.replace(" ", "").isalpha() else text


def _without_unit(text: str) -> tuple[str, str]:
    """Split a quantity and its unit; multiples such as "million" are multiplied out."""
    text, unit = text.strip().removesuffix(".").strip(), ""
    if match := _FINAL_TEXT.search(text):
        words = match[1].split()
        if not (words and (words[0] in _MULTIPLES or words[0] in _NO_UNITS or words in (["i"], ["e"]))):
            text, unit = text[: match.start()].strip(), match[1].strip()
    text = _tidy(re.sub(r"\^\\circ ?(?:\s*[CF](?![A-Za-z]))?", "", _unwrapped(text)))
    match = _UNIT.fullmatch(text)
    if match and not WORD.search(match["quantity"]):
        words = _WORDS.findall(match["unit"])
        value = number(_number(match["quantity"]))
        while value is not None and words and words[0].lower() in _MULTIPLES:
            value *= _MULTIPLES[words.pop(0).lower()]
        if not words and value is not None:
            return str(value), unit
        if _is_unit(match["unit"], words, bool(match["gap"])):
            return str(value) if value is not None else match["quantity"].strip(), match["unit"]
    return text, unit


def _is_nothing_or_unit(text: str) -> bool:
    return not text or _is_unit(text, _WORDS.findall(text), gap=True)


def _is_unit(unit: str, words: list[str], gap: bool) -> bool:
    lower = [word.lower() for word in words]
    if not words or _NO_UNITS.intersection(lower) or re.search(r"\d", re.sub(r"\^\s*\{?-?\d\}?", "", unit)):
        return False
    compound = "/" in unit or "^" in unit or len(words) > 1
    if unit.startswith("(") and unit.endswith(")"):
        return len(words[0]) > 1
    if not gap:
        return lower[0] in _SHORT_UNITS and (len(lower[0]) > 1 or "/" in unit)
    if len(words[0]) < 3:
        return lower[0] in _SHORT_UNITS and (len(lower[0]) > 1 or compound) or (lower[0] == "a" and len(words) > 1)
    return all(len(word) > 1 or word.lower() in (*_SHORT_UNITS, "a") for word in words)


def _number(text: str) -> str:
    """Write a number of any notation as an integer, fraction or decimal; return other text as it is."""
    if text.endswith("\\%"):
        return _number(text[:-2].strip()) + "\\%"
    sign, digits = _signed(text)
    for pattern, separator in _GROUPED:
        if pattern.fullmatch(digits):
            whole = digits.replace(separator, "").replace(",", ".")
            return f"{'-' if sign < 0 else ''}{whole}"
    value = _scientific(digits)
    if value is None and (match := _MIXED.fullmatch(digits)):
        whole, above, below = int(match[1]), int(match[2] or match[4]), int(match[3] or match[5])
        value = whole + Fraction(above, below) if above < below else None
    if value is None and (match := _REPEATING.fullmatch(digits)):
        value = _repeating(match[1] or "0", match[2], match[3] or match[4] or match[5])
    if value is not None:
        return str(sign * value)
    return digits if text.startswith("+") else text


def _signed(text: str) -> tuple[int, str]:
    match = re.match(r"\s*([-+]?)\s*", text)
    return (-1 if match[1] == "-" else 1), text[match.end() :].strip()


def _scientific(text: str) -> Fraction | None:
    match = _SCIENTIFIC.fullmatch(text)
    if match is None or abs(int(match["exponent"])) > MAX_EXPONENT:
        return None
    return Fraction(match["plain"] or match["times"] or "1") * Fraction(10) ** int(match["exponent"])


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    shift = Fraction(1, 10 ** len(fixed))
    return int(whole) + (int(fixed or "0") + Fraction(int(period), 10 ** len(period) - 1)) * shift
