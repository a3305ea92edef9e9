"""The entries of reasoning-gym's generators, by generator, parameters, seed and index, and the score of answers.

Generators are deterministic, so an entry is known by these four and never has to travel (some hold objects that are
no JSON). `score` runs in a worker process of `subprocess_pool`: some generators evaluate the answer as an expression.
"""

import dataclasses
import difflib
import json
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

CHUNK = 512
"""Entries per data set. Some generators make them all at the start; most derive entry i from seed + i, so the seeds
of two data sets must lie at least this far apart."""


@lru_cache(maxsize=8)
def _data(name: str, params: str, seed: int) -> Any:
    return reasoning_gym.create_dataset(name, **json.loads(params), seed=seed, size=CHUNK)


@lru_cache(maxsize=2048)
def entry(name: str, params: str, seed: int, index: int) -> dict[str, Any]:
    """Return an entry by its index, which is below CHUNK; `params` is JSON."""
    return _data(name, params, seed)[index]


def score(call: tuple[str, str, int, int, str]) -> float:
    """Score an answer, the last item of the call, to entry(*the others): the generator's own score, in [0, 1]."""
    *where, answer = call
    return float(_data(*where[:3]).score_answer(answer, entry(*where)))


def check(name: str, params: dict[str, Any]) -> None:
    """Create the generator once.

    Raises:
        ValueError: for an unknown generator or parameter, with the nearest spelling, or a value that is refused.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset: reasoning-gym has no generator {name!r}{_nearest(name, DATASETS)}")
    fields = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for param in params:
        if param not in fields:
            raise ValueError(f"params: {name} has no parameter {param!r}{_nearest(param, fields)}")
    try:
        _data(name, json.dumps(params), 0)
    except (AssertionError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"params: {name} refuses {params}: {error}") from error


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(names))}"
