"""Calls of a task class of the user's own, in a worker process of `rollout.subprocess_pool`."""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from layersweep.policies.user_code import make
from layersweep.rollout.types import Prompt, Response, Score

from .reward_calls import reward_of


def warm_up(section: dict[str, Any]) -> None:
    """Make the task.

    Raises:
        ValueError: it cannot be made, or lacks a method.
    """
    _task(section["path"], json.dumps(section["settings"]))


def call(section: dict[str, Any], request: dict[str, Any]) -> Any:
    """Answer one request, by its `method`.

    Args:
        section: `path` and `settings` of the class.
        request: with `prompts`, the arguments `split`, `count` and `seed`; with `score`, a `prompt`, `text` and
            `finished` of a response; with `demonstrations`, `count` and `seed`.

    Raises:
        ValueError, TypeError: what the class gave is not what the method should give. And whatever it raises.
    """
    task = _task(section["path"], json.dumps(section["settings"]))
    method = request["method"]
    if method == "score":
        given = task.score([prompt_of(request["prompt"])], [Response(request["text"], request["finished"])])
        if not isinstance(given, list | tuple) or len(given) != 1:
            raise TypeError(f"score gave {type(given).__name__} {str(given)[:80]!r} for one response; a list of one "
                            "is expected")  # fmt: skip
        [one] = given
        if isinstance(one, Score):
            one = {"score": one.reward, "format_ok": one.format_ok, **one.numbers}
        return reward_of(one, may_be_none=False)
    if not hasattr(task, method):
        raise ValueError(f"there is no `{method}`, which a tiny model needs; add it, or name a pretrained model")
    if method == "alphabet":
        return str(task.alphabet)
    if method == "demonstrations":
        return [[str(prompt), str(answer)] for prompt, answer in task.demonstrations(request["count"], request["seed"])]
    given = task.prompts(request["split"], request["count"], request["seed"])
    return [dataclasses.asdict(prompt_of(one)) for one in given]


def prompt_of(given: Any) -> Prompt:
    """Make a prompt of one, of a mapping of its fields, or of a text, which is then its name too.

    Raises:
        ValueError, TypeError: it is none.
    """
    if isinstance(given, str):
        given = {"id": given, "text": given}
    prompt = given if isinstance(given, Prompt) else Prompt(**given) if isinstance(given, Mapping) else None
    if prompt is None:
        raise TypeError(f"a prompt is a layersweep.rollout.types.Prompt, or a dict of its fields, not {given!r:.80}")
    if not isinstance(prompt.id, str) or not prompt.id:
        raise ValueError(f"the id of a prompt is text, not {prompt.id!r:.80}")
    if (prompt.text is None) == (prompt.messages is None):
        raise ValueError(f"prompt {prompt.id:.80} has not exactly one of text and messages")
    if prompt.text is not None and (not isinstance(prompt.text, str) or not prompt.text):
        raise ValueError(f"the text of prompt {prompt.id:.80} is not text, or empty: {prompt.text!r:.80}")
    (prompt.text or "").encode()  # half an emoji is no text
    messages = None if prompt.messages is None else tuple(prompt.messages)
    for message in messages or ():
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"prompt {prompt.id:.80} has a message without role and content: {message!r:.80}")
    return dataclasses.replace(prompt, messages=messages, tools=tuple(prompt.tools))


@cache
def _task(path: str, settings: str) -> Any:
    made = make(path, json.loads(settings))
    if missing := [name for name in ("prompts", "score") if not callable(getattr(made, name, None))]:
        raise ValueError(f"{path} has no method {missing[0]}")
    return made
