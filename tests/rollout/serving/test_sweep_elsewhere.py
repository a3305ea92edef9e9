"""`layersweep serve` of a sweep behind a web address, whose base writes a tool call: the weights are copied here for as
long as the server runs, and vLLM's parser reads the call. One server for all tests."""

import functools
import http.server
import json
import os
import signal
import tempfile
import threading
from pathlib import Path

import openai
import pytest

from tests.helpers.served_sweep import Server, make_sweep
from tests.helpers.tool_model import save_tool_model, tool_tokenizer

pytestmark = pytest.mark.long
TOOL = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"],
}}}  # fmt: skip
ASKED = {"messages": [{"role": "user", "content": "2 + 3?"}], "max_tokens": 20}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def scratch():
    """The server's folder for temporary files; short, since sockets of vLLM lie in it."""
    with tempfile.TemporaryDirectory(prefix="ls-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory, scratch):
    folder = tmp_path_factory.mktemp("runs")
    make_sweep(folder, save_tool_model(tmp_path_factory.mktemp("model")), tool_tokenizer())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        sweep = f"http://127.0.0.1:{web.server_port}/demo"
        started = Server(
            sweep, "--run", "layer-01", "--run", "layer-03", environment=os.environ | {"TMPDIR": str(scratch)}
        )
        yield started
        web.shutdown()
    started.stop()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key=server.token, max_retries=0) as made:
        yield made


def copies(scratch: Path) -> int:
    return len(list(scratch.rglob("model.safetensors")))


def test_models(client, scratch):
    """Layer 3 was trained with two seeds: three files are needed, of the nine that there are."""
    assert [model.id for model in client.models.list()] == ["base", "layer-01", "layer-03-seed0", "layer-03-seed1"]
    assert copies(scratch) == 3


@pytest.mark.parametrize("model", ["base", "layer-01"])
def test_a_tool_call_is_read(client, model):
    choice = client.chat.completions.create(model=model, tools=[TOOL], **ASKED).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add. ")
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add")
    assert json.loads(call.function.arguments) == {"a": 2, "b": 3}


def test_a_tool_call_is_read_while_it_is_written(client):
    content = name = arguments = ""
    for chunk in client.chat.completions.create(model="base", tools=[TOOL], stream=True, **ASKED):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments or ""
            finish = choice.finish_reason or ""
    assert (content.strip(), name, json.loads(arguments), finish) == ("I add.", "add", {"a": 2, "b": 3}, "tool_calls")


def test_without_tools_none_is_called(client):
    choice = client.chat.completions.create(model="base", **ASKED).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "No tool.", None)


def test_copies_are_gone_when_the_server_has_ended(server, scratch):
    """The last test: it ends the server."""
    os.killpg(server.process.pid, signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert copies(scratch) == 0
