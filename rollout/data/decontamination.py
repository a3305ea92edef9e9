"""Training prompts that repeat evaluation prompts, found by the runs of words that they share."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

BOILERPLATE_SHARE = 0.01
"""A run of words in more than this share of the training prompts (and in more than 10) belongs to the prompt's form,
such as "let's think step by step and output the final answer within ...": sharing it is no sign of a leak."""


def ngrams(text: str, n: int) -> set[str]:
    """The runs of `n` words of a text, in lower case and without punctuation.

    A text of fewer words has one entry, the text itself with single spaces: short prompts such as "3 + 4 =" match
    only as a whole, signs included.
    """
    words = re.findall(r"\w+", text.lower())
    if len(words) < n:
        return {" ".join(text.lower().split())}
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def contaminated(training: Sequence[str], evaluation: Iterable[str], n: int) -> set[int]:
    """The positions of the training prompts that share a run of `n` words with an evaluation prompt."""
    wanted = set().union(*(ngrams(text, n) for text in evaluation))
    hits = {i: shared for i, text in enumerate(training) if (shared := ngrams(text, n) & wanted)}
    spread = Counter(gram for shared in hits.values() for gram in shared)
    limit = max(10, BOILERPLATE_SHARE * len(training))
    return {i for i, shared in hits.items() if any(spread[gram] <= limit for gram in shared)}
