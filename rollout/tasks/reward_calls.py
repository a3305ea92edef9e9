"""Calls of reward functions of the user's own, in a worker process of `rollout.subprocess_pool`.

Two signatures are understood, by the names of the parameters; a function gets those of them that it takes.

- verl's, of one response: `score(data_source, solution_str, ground_truth, extra_info)`, giving a number, or a dict with
  `score` and further numbers (https://verl.readthedocs.io, "Implement Reward Function for Dataset").
- TRL's, of a batch: `score(prompts, completions, **columns)`, giving a list; None in it means that the reward does not
  apply (https://huggingface.co/docs/trl, "Using a custom reward function"). Here a batch is one response, so that one
  that fails costs no other's reward.
"""

import asyncio
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Real
from typing import Any

from layersweep.policies.user_code import load
from layersweep.rollout.types import bounded_reward

FORMS = "(data_source, solution_str, ground_truth, extra_info), as verl has it, or (prompts, completions, **columns), as TRL has it"  # fmt: skip # noqa: E501
MOST_NUMBERS = 32
"""Named numbers of one response at most."""
_NAME = re.compile(r"[^A-Za-z0-9_.-]")


def warm_up(paths: list[str]) -> None:
    """Import the functions, and see that their signatures are understood.

    Raises:
        ValueError: says which is not.
    """
    for path in paths:
        _function(path)


def call(paths: list[str], request: dict[str, Any]) -> dict[str, Any]:
    """Score one response.

    Args:
        paths: of the functions.
        request: `function` (its number in `paths`), `settings` (further keyword arguments), `response`, `ground_truth`,
            `prompt` (text or messages) and `columns` (of the row, as they stand).

    Returns:
        `score` (None where the reward does not apply), `numbers` by name, and `format_ok` (None where not said).

    Raises:
        ValueError, TypeError: what the function gave is no reward. And whatever it raises.
    """
    function, taken, batched = _function(paths[request["function"]])
    columns, truth = request["columns"], request["ground_truth"]
    if batched:
        completion = request["response"]
        if not isinstance(request["prompt"], str):
            completion = [{"role": "assistant", "content": completion}]
        row = {"ground_truth": truth} | columns
        arguments = {name: [value] for name, value in row.items()}
        arguments |= {"prompts": [request["prompt"]], "completions": [completion]}
    else:
        arguments = {
            "data_source": columns.get("data_source") or "",
            "solution_str": request["response"],
            "ground_truth": truth,
            "extra_info": columns.get("extra_info") or columns,
        }
    arguments = {name: value for name, value in arguments.items() if taken is None or name in taken}
    given = function(**arguments | request["settings"])
    if inspect.isawaitable(given):
        given = _event_loop().run(_result(given))
    if batched:
        given = _plain(given)
        if not isinstance(given, list | tuple) or len(given) != 1:
            raise TypeError(f"gave {_shown(given)} for a list of one completion; a list of one reward is expected")
        given = given[0]
    return reward_of(given, may_be_none=batched)


@cache
def _function(path: str) -> tuple[Callable[..., Any], frozenset[str] | None, bool]:
    """Return a function, the names that it takes (None: any), and whether it takes lists, as TRL's do."""
    function = load(path)
    if not callable(function):
        raise ValueError(f"{path} is no function but {type(function).__name__}")
    if isinstance(function, type):
        raise ValueError(f"{path} is a class; make an instance of it in the file, and name that")
    signature = inspect.signature(function)
    parameters = signature.parameters
    batched = "completions" in parameters
    if not batched and "solution_str" not in parameters:
        raise ValueError(f"{path} takes {signature}; a reward takes {FORMS}")
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY]
    if positional:
        raise ValueError(f"{path} takes {positional[0]} by position alone; a reward is called with keyword arguments")
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return function, None if anything else frozenset(parameters), batched


@cache
def _event_loop() -> asyncio.Runner:
    """Return the process's loop: one for all calls, as a client that a module makes belongs to one."""
    return asyncio.Runner()


async def _result(awaitable: Any) -> Any:
    return await awaitable


def reward_of(given: Any, may_be_none: bool) -> dict[str, Any]:
    """Read what a function gave, see `call`."""
    if not isinstance(given, Mapping):
        return {"score": _number(given, "the reward", may_be_none), "numbers": {}, "format_ok": None}
    if "score" not in given:
        raise ValueError(f"gave a dict without `score`: {_shown(dict(given))}")
    others = {key: _plain(value) for key, value in given.items() if key not in ("score", "format_ok")}
    numbers = {_NAME.sub("_", str(key))[:64]: value for key, value in others.items() if isinstance(value, Real)}
    if len(numbers) > MOST_NUMBERS:
        raise ValueError(f"gave {len(numbers)} numbers beside `score`; at most {MOST_NUMBERS} become columns")
    format_ok = given.get("format_ok")
    return {
        "score": _number(given["score"], "`score`", may_be_none),
        "numbers": {key: float(value) for key, value in numbers.items() if abs(value) <= sys.float_info.max},
        "format_ok": None if format_ok is None else bool(format_ok),
    }


def _number(value: Any, what: str, may_be_none: bool) -> float | None:
    return None if value is None and may_be_none else bounded_reward(value, what)


def _plain(value: Any) -> Any:
    """Make numbers and lists of NumPy and torch plain ones."""
    return value.tolist() if hasattr(value, "tolist") else value


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:80]!r}"
