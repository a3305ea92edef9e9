"""Tool calls in responses: the server's own application around an engine that writes a given text, asked by the
`openai` package; vLLM's renderer, chat handler and parser are between them."""

import asyncio
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import httpx
import openai
import pytest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers import renderer_from_config
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.input_processor import InputProcessor

from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.engine.arguments import engine_args
from layersweep.rollout.serving.app import make_app
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from tests.helpers.served_sweep import TEMPLATE
from tests.helpers.tool_model import CALL

TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"],
}}}  # fmt: skip
WRITTEN = "".join(CALL)
"""`<tool_call>`, a line of JSON, `</tool_call>`."""


class ScriptedEngine(SimpleNamespace):
    """Writes its `text` in answer to everything, seven characters at a time."""

    errored, dead_error = False, None

    def check_admission(self, count: int) -> None:
        pass

    async def is_tracing_enabled(self) -> bool:
        return False

    async def generate(self, prompt, sampling_params, request_id, **_):
        pieces = [self.text[at : at + 7] for at in range(0, len(self.text), 7)]
        if sampling_params.output_kind == RequestOutputKind.FINAL_ONLY:
            pieces = [self.text]
        for number, piece in enumerate(pieces, start=1):
            last = number == len(pieces)
            written = CompletionOutput(0, piece, [2] * len(piece), None, None, finish_reason="stop" if last else None)
            yield RequestOutput(request_id, None, prompt["prompt_token_ids"], None, [written], last)


@pytest.fixture(scope="module")
def engine(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(model_folder, folder, dirs_exist_ok=True)
    tokenizer = character_tokenizer("ua:?=+23 ")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    args = engine_args(str(folder), "Qwen3ForCausalLM", RolloutConfig(), "float32", 0)
    config = replace(args, skip_tokenizer_init=False).create_engine_config(UsageContext.OPENAI_API_SERVER)
    renderer = renderer_from_config(config)
    made = ScriptedEngine(vllm_config=config, model_config=config.model_config, renderer=renderer, text="",
                          input_processor=InputProcessor(config, renderer))  # fmt: skip
    return SimpleNamespace(engine=made, app=make_app(made, str(folder), (), None))


def asked(engine, text: str, use, **request):
    """What `use` makes of the answer of a client to whom the engine writes the text."""

    async def ask():
        transport = httpx.ASGITransport(engine.app)
        async with openai.AsyncOpenAI(
            base_url="http://server/v1", api_key="x", max_retries=0, http_client=httpx.AsyncClient(transport=transport)
        ) as client:
            messages = [{"role": "user", "content": "2 + 3?"}]
            return await use(
                await client.chat.completions.create(model="base", messages=messages, max_tokens=99, **request)
            )

    engine.engine.text = text
    return asyncio.run(ask())


async def choice_of(answer):
    return answer.choices[0]


async def joined(stream):
    """Content, calls by index as (name, arguments), and the reason for the end, of a stream."""
    content, calls, reason = "", {}, None
    async for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                function = call.function
                calls[call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
            reason = choice.finish_reason or reason
    return content, [(name, json.loads(arguments)) for name, arguments in calls.values()], reason


def test_a_call_is_read(engine):
    choice = asked(engine, f"I add. {WRITTEN}", choice_of, tools=[TOOL])
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add. ")
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add")
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}


def test_a_call_is_read_while_it_is_written(engine):
    content, calls, reason = asked(engine, f"I add. {WRITTEN}", joined, tools=[TOOL], stream=True)
    assert (content.strip(), calls, reason) == ("I add.", [("add", {"a": 2, "b": 3})], "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
def test_two_calls_are_two(engine, stream):
    text = f"{WRITTEN}\n{WRITTEN.replace('3', '4')}"
    found = asked(engine, text, joined if stream else choice_of, tools=[TOOL], stream=stream)
    calls = found[1] if stream else [
        (call.function.name, json.loads(call.function.arguments)) for call in found.message.tool_calls
    ]  # fmt: skip
    assert calls == [("add", {"a": 2, "b": 3}), ("add", {"a": 2, "b": 4})]


@pytest.mark.parametrize("text", ["5", "<tool_call>\n{'name': add}\n</tool_call>"])
def test_what_is_no_call_is_content(engine, text):
    choice = asked(engine, text, choice_of, tools=[TOOL])
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls or []) == ("stop", text, [])


def test_without_tools_none_is_called(engine):
    choice = asked(engine, WRITTEN, choice_of)
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls or []) == ("stop", WRITTEN, [])
