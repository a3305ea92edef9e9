"""A raw row as a prompt: its messages, its right answer, and its identity, a hash of its text."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from layersweep.rollout.types import Prompt

from .data_config import Columns, DataConfig
from .row_readers import messages_of, names_of, value_at

REFERENCE_SOLUTION = "reference_solution"
"""Name in a prompt's `info` of a program that is right, where a row brings one."""
ID_COLUMNS = tuple(
    spelling
    for name in ("id", "task_id", "question_id", "problem_id", "unique_id", "question_number", "idx", "index")
    for spelling in (name, name.upper())
)
"""Columns that may hold a row's own id; the first that a row has counts."""
_KEPT = ("data_source", "ability", REFERENCE_SOLUTION)


def ground_truth(raw: dict[str, Any], columns: Columns, required: bool = True) -> Any:
    """Return the answer of a raw row as it stands: in the column that `columns.answer` names, in
    `reward_model.ground_truth`, or in the first answer column that it has; None where it is not required and there is
    none.

    Raises:
        ValueError: it is required, and there is none.
    """
    model = raw.get("reward_model")
    if isinstance(model, str):  # JSON text, as of a column that a .csv file went through
        model = {"ground_truth": value_at(raw, "reward_model.ground_truth")}
    named = None if columns.answer is None else value_at(raw, columns.answer)
    if named is not None:
        value = named
    elif isinstance(model, dict):
        value = model.get("ground_truth")
    else:
        value = next((raw[name] for name in columns.answers if raw.get(name) is not None), None)
    if value is None and required:
        raise ValueError(
            f"no answer, neither reward_model.ground_truth nor a column {columns.answers[0]!r} (see data.columns); "
            f"there are: {names_of(raw)}"
        )
    return value


def id_of_row(raw: Any) -> str:
    """Name the column and value of a row's own id, such as ` (idx 17)`; empty where it has none."""
    ids = {name: raw.get(name) for name in ID_COLUMNS} if isinstance(raw, dict) else {}
    found = next(((name, value) for name, value in ids.items() if isinstance(value, str | int)), None)
    return f" ({found[0]} {json.dumps(found[1]):.80})" if found else ""


def json_like(value: Any) -> Any:
    """Return the value with whatever JSON does not have, such as dates, as text."""
    return json.loads(json.dumps(value, default=str))


def digest_of_answer(truth: Any) -> bytes:
    try:
        return digest(json.dumps(truth, sort_keys=True, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:  # bytes that are not UTF-8, or half an emoji
        raise ValueError("the answer is no valid text; save the data in UTF-8") from error


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def prompt_of_row(raw: Any, truth: Callable[[dict[str, Any]], Any], config: DataConfig, keep_columns: bool) -> Prompt:
    """Return a raw row as a prompt; a ValueError says what is wrong with it."""
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict):
        raise ValueError(f"not an object with columns but {type(raw).__name__}")
    columns = config.columns
    messages = messages_of(raw, columns.prompt, columns.questions, columns.contexts)
    whole = "\n\n".join(message["content"] for message in messages)
    # Space around a message reaches the model as it is, but makes no other question of it.
    question = "\n\n".join(message["content"].strip() for message in messages)
    if len(question) > config.max_prompt_chars:
        raise ValueError(
            f"the prompt has {len(question)} characters, data.max_prompt_chars is {config.max_prompt_chars}"
        )
    try:
        identity = digest(question.encode()).hex()
    except UnicodeEncodeError as error:  # bytes that are not UTF-8, or half an emoji
        raise ValueError("the prompt is no valid text; save the data in UTF-8") from error
    answer = truth(raw)
    info = {"question": question} | {k: raw[k] for k in _KEPT if isinstance(raw.get(k), str)}
    if keep_columns:
        others = {name: value for name, value in raw.items() if name != columns.prompt}
        info["columns"] = json_like(others)
    if config.prompt_format == "plain":
        text = config.template.replace("{question}", whole)
        text = text if config.system is None else f"{config.system}\n\n{text}"
        return Prompt(identity, text=text, truth=answer, info=info)
    last = {"role": "user", "content": config.template.replace("{question}", messages[-1]["content"])}
    messages = [*messages[:-1], last]
    if config.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system}, *messages]
    return Prompt(identity, messages=tuple(messages), truth=answer, info=info)
