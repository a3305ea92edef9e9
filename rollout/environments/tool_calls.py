"""Tool calls in responses, in the form of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

vLLM's parsers of this form need vLLM and a tokenizer, which the processes of environments do not load.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class BadToolCall(ValueError):
    """A response means to call a tool, and cannot be understood; the message tells the model why."""


def calls_tool(response: str) -> bool:
    """Return whether a response means to call a tool, well or badly: after its reasoning, if it has any."""
    return "<tool_call>" in _without_reasoning(response)


def read_tool_call(response: str, tools: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the `name` and `arguments` of the tool that a response calls; None where it calls none.

    Args:
        tools: JSON schemas in OpenAI's form.

    Raises:
        BadToolCall: several calls, an unfinished one, no JSON object, no such tool, or arguments that it lacks.
    """
    if not calls_tool(response):
        return None
    found = _CALL.findall(_without_reasoning(response))
    if len(found) != 1:
        raise BadToolCall("call one tool at a time" if found else "<tool_call> without </tool_call>")
    try:
        call = json.loads(found[0])
    except ValueError as error:
        raise BadToolCall(f"the call is not JSON: {error}") from error
    parameters = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
    if not isinstance(call, dict) or call.get("name") not in parameters:
        raise BadToolCall(f"name one of the tools {', '.join(parameters)}")
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        raise BadToolCall("arguments must be a JSON object")
    if missing := [name for name in parameters[call["name"]].get("required", ()) if name not in arguments]:
        raise BadToolCall(f"{call['name']} lacks the argument {missing[0]}")
    return {"name": call["name"], "arguments": arguments}


def schema_problem(tools: Any) -> str | None:
    """Return what is wrong with an environment's `tools`; None if nothing is."""
    if not isinstance(tools, list):
        return "a list is expected"
    for tool in tools:
        try:
            named = isinstance(tool["function"]["name"], str) and tool["type"] == "function"
            json.dumps(tool)
        except (KeyError, TypeError, ValueError):
            named = False
        if not named:
            return f'{str(tool)[:80]} is not of the form {{"type": "function", "function": {{"name": ...}}}}'
    return None


def _without_reasoning(response: str) -> str:
    return response.rpartition("</think>")[2]
