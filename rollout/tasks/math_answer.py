"""The final answer in a text: in a box, after `####`, after "the answer is", or at the end of the last line.

Everything here takes time linear in the text.
"""

import re
from dataclasses import dataclass

from .math_notation import WORD, canonical, plain_unicode, split_list
from .number_words import leading_number

MAX_ANSWER_CHARS = 500
"""Nothing longer is a final answer: it is a derivation, or garbage."""
MAX_DEPTH = 20
"""Brackets within brackets; parsers of LaTeX need exponential time on more."""

# Boxes
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BOX_TOKEN = re.compile(rf"{_BOX.pattern}|\\.|[{{}}]", re.DOTALL)
_BARE_BOX = re.compile(r"[^\s${}\\]+|\\[A-Za-z]+")
_BETWEEN_BOXES = re.compile(
    r"(?:\\[()\[\],;]|\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\q?quad|\(?\b[a-z0-9]\)|\b[A-Za-z](?:_\{?\w\}?)?\s*=|[\s$,;&*])*"
)
_AFTER_BOX = re.compile(r"[\s$]{0,3}(\\?%|(?:percent|hundred|thousand|million|billion|trillion|dozen)\b)")

_HTML = re.compile(r"</?(?:b|strong|i|em|u|p|br|span|code)\s*/?>", re.IGNORECASE)

CJK = "\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"
"""Characters of scripts that need no spaces between words."""

# Phrases
_IS = r"(?:is|are|was|:|[-=]>|=|[→⇒⟹]|(?:would|should|will|must) be|comes? out to(?: be)?|equals)(?![A-Za-z])"
_PHRASE = re.compile(
    r"\banswers?\b\W{0,3}(?:to|for|of)\b[^.:=\n]{0,80}?\b(?:is|are)\b[\s*_:]*"
    rf"|\banswers?\b(?:\s*\([^()\n]{{0,40}}\))?[\s*_,]*(?:(?:therefore|thus|then|hence|here)[\s,]*)?{_IS}[\s*_:]*"
    rf"|\b(?:antwort|réponse|respuesta|risposta|resposta|ответ)\b[^.:=\n]{{0,20}}?(?::|\b(?:ist|lautet|est|es|è|é)\b)[\s*_]*"
    r"|(?:答案|答え|答|답)[为為是は은:\s]+"
    r"|^[\s#*_>]*(?:the )?(?:final )?answer[*_]*[ \t]*\n(?:[-=]{3,}[ \t]*\n)?[\s*_]*",
    re.IGNORECASE | re.MULTILINE,
)
_HOPE = re.compile(r"\b(?:hope|check|verify|whether|if)\b[^.\n]{0,20}$", re.IGNORECASE)
_ABOUT = re.compile(
    r"(?:(?:in)?correct|wrong|helpful|useful|(?:un)?clear|as follows|(?:given |found |shown )?(?:below|above)|found"
    r"|obtained|based on|reasonable|complete)\b",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?:that|the|a|an|just|simply|exactly|approximately|about|roughly|around|only|equal to|given by|option|choice"
    r"|letter|therefore|thus|then|indeed|now|is)\b[\s:,]*|(?:=|\\approx)\s*",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"(?:not|between|from|at (?:least|most)|(?:less|more|greater|fewer|smaller|larger) than|under|over|up to|no|either)"
    r"\b",
    re.IGNORECASE,
)
_MINUS = re.compile(
    r"(?:(?<=\b(?:is|be) )|(?<=\bare )|(?<=[:=] )|^)(?:minus|negative)\s+(?=\d)", re.IGNORECASE | re.MULTILINE
)
_NEGATED = re.compile(r"(?:\bnot|n['’]t)(?: be)?\s+\W{0,3}$", re.IGNORECASE)
_CHOSEN = re.compile(r"(?:option|choice|choose|pick|select) \(?([A-J])\)?\W*$", re.IGNORECASE)
_NAMED = re.compile(r"[A-Z][a-z]+:? \d+")  # August 5
_CHOICE = re.compile(r"\(([A-J])\)[.:]?\s*|([A-J])(?:\)[.:]?|[.:](?=\s))\s*")
_LETTER = re.compile(r"\(?([A-J])(?:\)|(?:,|\s+(?:because|since|as))\s.*)?")
_SENTENCE_END = re.compile(
    r"(?<!\bRs)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.?](?=\s|$)|!+(?=\s*$|\s+[A-Z])|[。！？]"
)
_EXPLANATION = re.compile(
    r",\s+(?!(?:and|or)\s+[^A-Za-z])(?=[A-Za-z]{2,}|i\.e|e\.g)|\s*(?:\s-|;|:)\s+(?=[A-Za-z]{2,})|(?<=%)\s+of\b|\s+of\s+(?:the|all|its|his|her|their|my|our)\b"
    r"|\s+\((?=[A-Za-z]{2,}\s)|\s+and\s+(?:not|she|he|it|they|we|you|the|this|that|there)\b"
    r"|\s+(?:because|since|which|where|when|whereas|so|as|after|while|if|for|from|by|with|at|is|are|was|were)\b"
    rf"|\s*(?=[{CJK}])(?![万亿億萬千百])"
    r"|\s+(?:in|on|per|each|every)\s+(?!(?:total|all)\b)(?=[A-Za-z$])|(?<=[A-Za-z])\s+in\s+(?=\d)"
)
_REASON = re.compile(r",\s+(?:since|because|as)\b|\s+(?:since|because)\b")

# What an answer looks like
_FUNCTION = re.compile(r"(?:sin|cos|tan|log|ln|exp|sqrt|pi|arc\w+|infinity)\b|[\w.]+\(")
_ONE_NUMBER = (
    r"(?:(?<![\w)}])[-+])?\\?\$?(?:\d{1,3}(?: \d{3})+(?!\d)|\d+(?:\s?:\s?\d+)+|\d+,(?:\d|\d{4,})(?![\d,)\]])"
    r"|\d+(?:,\d{2,3})*(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d+\b|\s*(?:\\times|\*)\s*10\s*\^\s*\{?-?\d+\}?)?(?:\s\d+/\d+|/\d+)?"
    r"(?:\s?\\?%| percent\b| (?:hundred|thousand|million|billion|trillion|dozen)\b)?"
)
_NUMBERS = re.compile(rf"{_ONE_NUMBER}(?:(?:,\s+(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+){_ONE_NUMBER})*")
_FORMULA = (
    r"(?:(?<!\\)\$\$[^$]+\$\$|(?<!\\)\$(?!\s*\$)(?:[^$\n\\]|\\.)+\$(?!\d)"
    r"|\\\((?:[^\\]|\\(?!\)))*\\\)|\\\[(?:[^\\]|\\(?!\]))*\\\])"
)
_FORMULAS = re.compile(rf"{_FORMULA}(?:\s*(?:,\s*(?:and\b|or\b)?|\band\b|\bor\b|;)\s*{_FORMULA})*(?:\s?\\?%)?")
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_BOLD_END = re.compile(r"(?<=\S)(?:\*\*|__)(?=[\s.,;:!?)]|$)")
_CLOSING = re.compile(r"\bhope|let me know|\bhelp|feel free|question|good luck|\bglad|\bhappy|\bthank", re.IGNORECASE)
_HEADING = re.compile(
    r"(?:step|part|case|solution|conclusion|verification|explanation|reasoning|calculation|summary|method|approach|given|"
    r"problem|question|analysis|check|example|result|note|(?:the )?(?:final )?answer)s?\b(?!\s*=)|\d+[.)]\s+[A-Z]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Box:
    r"""One `\boxed{}` or `\fbox{}` that is in no other."""

    start: int
    end: int
    content: str | None
    """None where it is never closed."""


def final_answer(text: str, finished: bool, parts: int = 1) -> str | None:
    """Read the answer of a response: the marked one, else what the last line ends with.

    Text between `<think>` tags is no answer. A response that was cut at the token limit has no last line, what stands
    there is somewhere in the working: only a marked answer counts.

    Args:
        finished: whether the model ended the response itself.
        parts: how many answers the question has, see `marked_answer`.
    """
    text = visible(text, finished)
    answer = marked_answer(text, parts)
    if answer is not None or not finished:
        return answer or None
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    while len(lines) > 1 and _CLOSING.search(lines[-1]) and not re.search(r"[\d$]", lines[-1]):
        lines.pop()
    return _last_line(lines[-1]) if lines else None


def marked_answer(text: str, parts: int = 1) -> str | None:
    r"""Read the answer that a text marks: the last `\boxed{}`, else the last `####`, else "answer is" or "answer:".

    Boxes with nothing but "and" or a comma between them are one answer. Where `parts` answers are wanted and the last
    box holds one, the last so many boxes are the answer.

    Returns:
        None when there is no mark; "" when what it marks is no answer.
    """
    found = boxes(text)
    if filled := [box for box in found if box.content is None or box.content.strip()]:
        return _boxed(text, filled, parts)
    if headed := _headed(text):
        return headed
    marked = bool(found) or headed is not None
    for phrase in reversed(list(_PHRASE.finditer(text))):
        after = text[phrase.end() : phrase.end() + 4 * MAX_ANSWER_CHARS]
        if _ABOUT.match(after) or _HOPE.search(text[max(0, phrase.start() - 40) : phrase.start()]):
            continue
        if answer := _reading(after):
            return answer
        marked = True
    return "" if marked else None


def statements(text: str, finished: bool) -> list[str]:
    """List what follows the last mark other than a box, or without a mark is the last line: all, its line, first
    sentence, what precedes a reason, a first word before a comma.

    Where one is the right answer letter by letter, as "Mr. Doyle, at 5:30", no reading of it has to be found.
    """
    text = visible(text, finished)
    marks = [*_PHRASE.finditer(text), *re.finditer(r"####+", text)]
    if _BOX.search(text) or not (marks or finished):
        return []
    if marks:
        rest = text[max(mark.end() for mark in marks) :].strip(" \n*_")
    else:  # no answer of several words but the last line's own
        rest = text.strip().rpartition("\n")[2].strip(" *_")
    line = rest[: 4 * MAX_ANSWER_CHARS].partition("\n")[0].strip(" *_")
    parts = rest, line, _SENTENCE_END.split(line)[0], _REASON.split(line)[0], *re.findall(r"^[A-Za-z]+(?=,\s)", line)
    return [part for part in dict.fromkeys(parts) if _usable(part)]


def all_boxed(text: str) -> str | None:
    """List the contents of all different boxes of a solution; None where it has no box."""
    found = boxes(text)
    contents = dict.fromkeys(box.content.strip() for box in found if box.content)
    return ", ".join(filter(None, contents)) if found else None


def visible(text: str, finished: bool) -> str:
    """Leave out what was thought before the response, and all but the content of the last `<answer>` tag."""
    before, closed, after = text.rpartition("</think>")
    if closed:
        text = after if after.strip() else before.replace("<think>", "")
    elif "<think>" in text:
        # Never closed: all of a response that ended itself may be meant, one that was cut was still thinking.
        text = text.replace("<think>", "") if finished else text.partition("<think>")[0]
    _, opened, answer = text.rpartition("<answer>")
    answer = answer.partition("</answer>")[0]
    text = _HTML.sub("", answer if opened and answer.strip() else text)
    return _MINUS.sub("-", text.replace("：", ":"))


def boxes(text: str) -> list[Box]:
    r"""Find the outermost boxes; nothing follows one that is never closed."""
    if not _BOX.search(text):
        return []
    found: list[Box] = []
    open_braces: list[tuple[int, int] | None] = []
    """Span of a box, from its command's start to its brace's end; None for any other brace."""
    depth, brace_of_box = 0, None
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "{":
            box = brace_of_box if brace_of_box and brace_of_box[1] == token.start() else None
            depth += box is not None
            open_braces.append(box and (box[0], token.end()))
        elif token[0] == "}" and open_braces:
            if box := open_braces.pop():
                depth -= 1
                if depth == 0:
                    found.append(Box(box[0], token.end(), _innermost(text[box[1] : token.start()])))
        elif _BOX.match(token[0]):
            brace_of_box = token.span()
            if depth == 0 and (word := _BARE_BOX.match(text, token.end())):
                found.append(Box(token.start(), word.end(), word[0]))
    if depth:
        start = next(box[0] for box in open_braces if box)
        return [box for box in found if box.end <= start] + [Box(start, len(text), None)]
    return found


def _innermost(content: str) -> str:
    """Return the content of the last box within a box; the content itself where there is none."""
    if len(content) > 4 * MAX_ANSWER_CHARS:
        return content
    return next((box.content for box in reversed(boxes(content)) if box.content), content)


def _boxed(text: str, found: list[Box], parts: int) -> str:
    if found[-1].content is None:
        return ""
    first = len(found) - 1
    while first and _are_one(text[found[first - 1].end : found[first].start]):
        first -= 1
    contents = list(dict.fromkeys(box.content.strip() for box in found[first:]))
    if parts > len(contents) == 1 and len(split_list(canonical(contents[0]))) == 1:
        contents = list(dict.fromkeys(box.content.strip() for box in found))[-parts:]
    if len(contents) == 1 and (phrase := _PHRASE.search(bare := re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", contents[0]))):
        return _reading(bare[phrase.end() :]) or ""
    if len(contents) == 1 and (after := _AFTER_BOX.match(text, found[-1].end)):
        contents = [f"{contents[0]} {after[1]}"]
    return _usable(", ".join(contents)) or ""


def _are_one(between: str) -> bool:
    return len(between) <= 60 and bool(_BETWEEN_BOXES.fullmatch(between))


def _headed(text: str) -> str | None:
    """Read what is after the last `####` that is no section heading; "" where that is no answer."""
    for mark in reversed(list(re.finditer(r"####+", text))):
        line, _, rest = text[mark.end() : mark.end() + 4 * MAX_ANSWER_CHARS].strip().partition("\n")
        line = line.strip(" *_")
        words = len(WORD.findall(line))
        if _HEADING.match(line) or (words > 1 and rest.strip() and not re.search(r"[\d\\$]", line)):
            continue
        return (_reading(line) if words > 1 else _usable(line)) or ""
    return None


def _last_line(line: str) -> str | None:
    start = line[: MAX_ANSWER_CHARS + 1]
    if (named := leading_number(line)) and not named[1].strip(" .!*"):
        return _usable(line)
    if chosen := _CHOSEN.search(line):
        return chosen[1].upper()
    if len(WORD.findall(start)) + len(re.findall(f"[{CJK}]", start)) <= 1:
        # A bare expression, perhaps with its unit.
        return _usable(re.sub(r"^(?:[A-Za-z]+:\s+|(?:[-=]>|[→⇒⟹])\s*|(?:it|that|this)['’]s\s+)", "", line, flags=re.I))
    for bold in reversed(_BOLD.findall(line)):
        if re.search(r"\d", bold) or _CHOICE.fullmatch(f"{bold} "):
            return _reading(bold)
    line = plain_unicode(line)
    if formulas := _formulas(line):
        return _usable(formulas[-1].strip("$"))
    numbers = list(_NUMBERS.finditer(line))
    if not numbers or _NEGATED.search(line[: numbers[-1].start()]):
        return None
    return _usable(numbers[-1][0].strip())


def _reading(text: str) -> str | None:
    """Read the answer that a text states first, without what explains it."""
    text = text.lstrip(" \t\n*_:\"'`>#")
    first, _, rest = text.partition("\n")
    if rest.strip() and _FILLER.fullmatch(first.strip(" *_:") + " "):  # "therefore:", and the answer below it
        text = rest.lstrip(" \t\n*_:\"'`>#")
    if re.match(r"\$\$|\\\[", text) and (formulas := _FORMULAS.match(text)):
        return _usable(formulas[0])
    line = plain_unicode(text.partition("\n")[0])
    line = _BOLD_END.split(line)[0].strip(" *")
    if (choice := _CHOICE.match(line)) and (rest := line[choice.end() :].strip()):
        return f"({choice[1] or choice[2]}) {_reading(rest) or ''}".strip()
    line = _SENTENCE_END.split(line)[0].strip(" _*`")
    while (filler := _FILLER.match(line)) and filler.end() < len(line) and not _LETTER.fullmatch(line):
        line = line[filler.end() :]
    if letter := _LETTER.fullmatch(line):
        return letter[1]
    if (formulas := _formulas(line)) and not line[0].isdigit():
        if line.startswith(formulas[0]):
            rest = line[len(formulas[0]) :]
            return _usable(
                line if re.match(r"\s*(?:,|and|or|to|-)\s*\$?\d", rest) else _with_multiple(formulas[0], rest)
            )
        return None if _BOUND.match(line) else _usable(formulas[-1])
    digit = re.search(r"\d", line)
    cut = _EXPLANATION.search(line, digit.end()) if digit else None
    head = (line[: cut.start()] if cut else line).strip(" ,;:")
    if not digit:
        head = _REASON.split(head)[0]
    elif WORD.match(head) and not (_FUNCTION.match(head) or _BOUND.match(head) or _NAMED.fullmatch(head)):
        if re.search(r"\d", head.rpartition("=")[2]) and "=" in head:
            return _usable(head.rpartition("=")[2])
        return _usable(_NUMBERS.findall(head)[-1].strip())
    return _usable(head)


def _formulas(line: str) -> list[str]:
    """Find formulas between dollars or brackets, several in a row as one; not "$5 a day and $2"."""
    found = (match[0] for match in _FORMULAS.finditer(line))
    texts = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}")
    return [f for f in found if not (re.match(r"\$\s*\d", f) and WORD.search(texts.sub("", f.partition("$ and")[0])))]


def _with_multiple(formula: str, rest: str) -> str:
    multiple = re.match(r"\s*(\\?%|(?:hundred|thousand|million|billion|trillion|dozen|percent)\b)", rest)
    return f"{formula.strip('$')} {multiple[1]}" if multiple else formula


def _usable(answer: str) -> str | None:
    r"""Return the answer, or None if it is too long, has no letter or digit, or braces that do not match."""
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
