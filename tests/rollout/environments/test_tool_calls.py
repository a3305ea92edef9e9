"""Tools that an environment declares: shown by the chat template, called by responses, answered as a tool's message."""

from pathlib import Path

import pytest

from layersweep.orchestrator.planning.model_checks import tool_problems
from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.custom import CustomEnvironmentConfig
from layersweep.rollout.environments.tool_calls import BadToolCall, read_tool_call
from layersweep.rollout.prompt_encoder import PromptEncoder
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from tests.helpers.scripted import Model, decode, played

ADDING = {"type": "function", "function": {"name": "add", "description": "Add two numbers.", "parameters": {
    "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"],
}}}  # fmt: skip
WORLD = '''
class Sums:
    """The sum of the seed and 7, by a tool; the answer in plain text ends it."""

    tools = [TOOL]

    def reset(self, seed):
        self.wanted, self.calls = seed + 7, 0
        return f"{seed} + 7?"

    def step(self, call):
        if isinstance(call, dict):
            assert call["name"] == "add"
            self.calls += 1
            return str(call["arguments"]["a"] + call["arguments"]["b"]), 0.0, False, False, {}
        return f"after {self.calls} calls", float(call == str(self.wanted)), True, False, {}
'''
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 5, "b": 7}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


def config(folder: Path, source: str = WORLD, **fields) -> CustomEnvironmentConfig:
    (folder / "sums.py").write_text(source.replace("TOOL", repr(ADDING)))
    return CustomEnvironmentConfig(path=f"{folder}/sums.py:Sums", processes=1, **{"history": "messages"} | fields)


def test_a_tool_is_called_and_its_result_comes_back_as_its_message(tmp_path):
    """Three turns: a call that lacks an argument, one that is right, the answer. The model is trained on its own three
    responses alone; what environment and tool said is in the prompts."""
    responses = ['<tool_call>{"name": "add", "arguments": {"a": 5}}</tool_call>', CALL, "12"]
    model = Model(lambda prompt, seed: responses[prompt.count("assistant:")])
    task = config(tmp_path).build()
    task.check()
    assert task.tools == (ADDING,)
    done = played(task, [InitialState("s5", 5)], 1, model)
    task.close()
    first = "user: 5 + 7?\n"
    second = f"{first}assistant: {responses[0]}\ntool: Error: add lacks the argument b\n"
    third = f"{second}assistant: {CALL}\ntool: 12\n"
    rows = done.experience()
    assert decode(rows.prompts) == [first, second, third]
    assert "".join(map(chr, rows.tokens)) == "".join(responses)
    assert rows.lengths.tolist() == [len(response) for response in responses]
    assert rows.reward.tolist() == pytest.approx([-0.1, 0.0, 1.0])
    assert rows.format_ok.tolist() == [False, True, True]
    assert rows.anchor == ["5 + 7?", "5 + 7?", "12"]  # a call that fails changes nothing
    assert done.scores().score.tolist() == [1.0]


def test_plain_conversations_need_no_tools(tmp_path):
    """`<tool_call>` is text like any other then, and every observation is the user's, by the template."""
    source = WORLD.replace("    tools = [TOOL]\n", "").replace("isinstance(call, dict)", '"tool_call" in call').replace(
        'assert call["name"] == "add"', "pass").replace(
        'str(call["arguments"]["a"] + call["arguments"]["b"])', '"what?"')  # fmt: skip
    model = Model(lambda prompt, seed: [CALL, "12"][prompt.count("assistant:")])
    task = config(tmp_path, source, template="{turn}. {observation}").build()
    done = played(task, [InitialState("s5", 5)], 1, model)
    task.close()
    assert decode(done.experience().prompts) == [
        "user: 1. 5 + 7?\n", f"user: 1. 5 + 7?\nassistant: {CALL}\nuser: 2. what?\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("12", None),
        (f"I add.\n{CALL}", {"name": "add", "arguments": {"a": 5, "b": 7}}),
        (f"<think>{CALL}{CALL}</think>\n12", None),
        (f"{CALL}\n{CALL}", "one tool at a time"),
        ("<tool_call>{", "without </tool_call>"),
        ("<tool_call>{</tool_call>", "the call is not JSON"),
        ('<tool_call>["add"]</tool_call>', "name one of the tools add"),
        ('<tool_call>{"name": "subtract"}</tool_call>', "name one of the tools add"),
        ('<tool_call>{"name": "add", "arguments": "5, 7"}</tool_call>', "arguments must be a JSON object"),
        ('<tool_call>{"name": "add"}</tool_call>', "add lacks the argument a"),
    ],
)
def test_reading_calls(response, found):
    if isinstance(found, str):
        with pytest.raises(BadToolCall, match=found):
            read_tool_call(response, [ADDING])
    else:
        assert read_tool_call(response, [ADDING]) == found


@pytest.mark.parametrize(
    ("source", "fields", "problem"),
    [
        (WORLD, {"history": "last"}, "has tools, which the model's chat template shows: set history: messages"),
        (WORLD, {"action": "tag"}, "set history: messages and action: whole"),
        (WORLD.replace("[TOOL]", "[TOOL['function']]"), {}, "is not of the form"),
        (WORLD.replace("[TOOL]", "'add'"), {}, "tools: a list is expected"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(tmp_path, source, fields, problem):
    task = config(tmp_path, source, **fields).build()
    with pytest.raises(
        ValueError,
        match=problem.replace("'", "."),
    ):
        task.check()
    task.close()


def test_messages_have_no_place_for_the_history():
    with pytest.raises(ValueError, match="{history} cannot be in the messages"):
        CustomEnvironmentConfig(path="sums.py:Sums", history="messages", template="{history}{observation}")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (TEMPLATE, None),
        (TEMPLATE.replace("if tools", "if false"), "does not show the tool add"),
        (
            TEMPLATE.replace("in messages %}", "in messages if m.role != 'tool' %}"),
            "does not show the results of tools",
        ),
        ("{{ raise_exception('no tools') }}", "fails on tools"),
    ],
)
def test_a_template_must_show_tools_and_their_results(tmp_path, template, problem):
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    found = tool_problems(PromptEncoder(str(tmp_path)), {"task": [ADDING]})
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0])
