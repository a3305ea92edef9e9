"""Training prompts that repeat evaluation prompts, found by the runs of words that they share."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

_WORD = re.compile(r"\w+")


def ngrams(text: str, n: int) -> list[str]:
    """Return the runs of `n` words of a text in order, in lower case and without punctuation.

    A text of fewer words has one entry, the text itself with single spaces: short prompts such as "3 + 4 =" match
    only as a whole, signs included.
    """
    words = _WORD.findall(text.lower())
    if len(words) < n:
        return [_plain(text)]
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def contaminated(training: Sequence[str], evaluation: Iterable[str], n: int) -> set[int]:
    """Return the positions of the training prompts that repeat an evaluation prompt.

    Compared is what makes an evaluation prompt differ from others: words of a form that many prompts share, such as
    "Let's think step by step and output the final answer within ...", do not count. Of at least `n` differing words,
    `n` must come back in shared runs of `n` words; fewer match only as a whole, signs included.
    """
    asked = list(dict.fromkeys(evaluation))
    if not asked:
        return set()
    grams_of = [ngrams(text, n) for text in asked]
    wanted = {gram for grams in grams_of for gram in grams}
    holders: dict[str, set[int]] = defaultdict(set)
    for at, text in enumerate(training):
        for gram in wanted.intersection(ngrams(text, n)):
            holders[gram].add(at)
    spread = Counter(gram for grams in grams_of for gram in set(grams))
    limit = _form_limit(len(training) + len(asked))
    form = {gram for gram in wanted if spread[gram] + len(holders[gram]) > limit}
    wholes = {_plain(text) for text in asked}
    found = {at for at, text in enumerate(training) if _plain(text) in wholes}
    for text, grams in zip(asked, grams_of, strict=True):
        differing = _differing(grams, n, form)
        shared: dict[int, set[int]] = defaultdict(set)
        for at, gram in enumerate(grams):
            for holder in () if gram in form else holders[gram]:
                shared[holder] |= differing.intersection(range(at, at + n))
        for holder, words in shared.items():
            if len(words) >= n or (words == differing and _core(training[holder], n, form) == _core(text, n, form)):
                found.add(holder)
    return found


def _form_limit(prompts: int) -> float:
    """Return the number of prompts above which a run of words that they share belongs to their form: 1 % of them and at
    least 10, but of few prompts a fifth, and at least 3."""
    return max(3.0, min(max(10.0, 0.01 * prompts), 0.2 * prompts))


def _differing(grams: Sequence[str], n: int, form: Collection[str]) -> set[int]:
    """Return the positions of a text's words that no run of the form covers."""
    count = len(grams) + n - 1
    return set(range(count)).difference(*(range(at, at + n) for at, gram in enumerate(grams) if gram in form))


def _core(text: str, n: int, form: Collection[str]) -> str:
    """Return a text without the words of the form; signs stay."""
    differing = _differing(ngrams(text, n), n, form)
    positions = iter(range(len(text)))
    return _plain(_WORD.sub(lambda match: match.group() if next(positions) in differing else "", text))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
