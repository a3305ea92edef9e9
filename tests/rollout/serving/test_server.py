"""`layersweep serve` with the `openai` package as its client: each model's answers against transformers.

One server for all tests: the base, eight runs and two stacks of a 4-layer Qwen3.
"""

import asyncio
import os
import re
import signal
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from layersweep.orchestrator.commands.export import export
from tests.helpers.served_sweep import Server, make_sweep

PROMPT = "12+30=42:abc"
MODELS = ["full", "layer-00", "layer-01", "layer-02", "layer-03-seed0", "layer-03-seed1", "layers-00-02",
          "layer-01-attention", "stack-00-01-x0.5", "stack-01-03"]  # fmt: skip

NO_SPECIAL = {"0": -100, "1": -100}
"""Bias against padding and end, which no text shows."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, model_folder):
    return make_sweep(tmp_path_factory.mktemp("runs"), model_folder)


@pytest.fixture(scope="module")
def server(sweep):
    runs = [word for name in ("full", "layer-00", "layer-01", "layer-02", "layer-03", "layers-00-02",
                              "layer-01-attention") for word in ("--run", name)]  # fmt: skip
    started = Server(sweep, *runs, "--stack", "stack-00-01-x0.5", "--stack", "1+3")
    yield started
    started.stop()


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key=server.token, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def exported(sweep, tmp_path_factory):
    """transformers with the folder that `layersweep export` writes, by model name."""
    made = {}

    def model(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("exported") / name
            selection, _, seed = name.partition("-seed")
            if name == "base":
                folder = sweep.replace("/demo", "/model")
            else:
                export(sweep, selection, str(folder), int(seed) if seed else None)
            made[name] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return made[name]

    return model


@pytest.fixture(scope="module")
def tokenizer(sweep):
    return AutoTokenizer.from_pretrained(sweep.replace("/demo", "/model"))


@torch.no_grad()
def logprobs(model, tokens):
    """Log-probability of each token but the first."""
    logits = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return logits[range(len(tokens) - 1), tokens[1:]].tolist()


@torch.no_grad()
def greedy(model, tokens, count):
    for _ in range(count):
        tokens = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
    return tokens[-count:]


def test_the_example_of_the_page(server, capsys):
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    [example] = re.findall(r"```python\n(from openai.*?)```", page, re.DOTALL)
    exec(example.replace("http://127.0.0.1:8000/v1", server.url).replace("sk-...", server.token))
    names, *answers = capsys.readouterr().out.splitlines()
    assert names == str(["base", *MODELS])
    assert [line.split(" ")[0] for line in answers] == ["base", "layer-02", "full"]


def test_models(client):
    assert client.models.retrieve("layer-01").id == "layer-01"
    with pytest.raises(openai.NotFoundError, match="`layer-09` does not exist; there are base, full, layer-00"):
        client.models.retrieve("layer-09")
    assert [model.id for model in client.models.list()] == ["base", *MODELS]


@pytest.mark.parametrize("name", ["base", "layer-01", "full", "layer-03-seed1"])
def test_echoed_log_probabilities_are_those_of_the_exported_folder(client, exported, tokenizer, name):
    """Of the prompt and of what is added to it; the run `full` has an LM head of its own. Another model's are far off:
    by 0.1 nats at least somewhere."""
    answer = client.completions.create(
        model=name, prompt=PROMPT, max_tokens=6, echo=True, logprobs=1, temperature=0, extra_body={"ignore_eos": True}
    )
    choice = answer.choices[0]
    tokens = tokenizer(PROMPT)["input_ids"]
    tokens += greedy(exported(name), tokens, 6)
    assert answer.model == name and choice.text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert choice.logprobs.token_logprobs[0] is None
    given, own = (torch.tensor(x) for x in (choice.logprobs.token_logprobs[1:], logprobs(exported(name), tokens)))
    assert (given - own).abs().max() < 1e-4
    other = torch.tensor(logprobs(exported("layer-02"), tokens))
    assert (given - other).abs().max() > 0.1


@pytest.mark.parametrize("name", ["stack-00-01-x0.5", "stack-01-03"])
def test_a_stack_is_its_members_changes_added_up(client, exported, tokenizer, name):
    """The first is exported too. The second is layer-01's model with block 3 of the run layer-03."""
    tokens = tokenizer(PROMPT)["input_ids"]
    if name == "stack-01-03":
        model = exported("layer-01")
        own = {k: v for k, v in exported("layer-03-seed0").state_dict().items() if k.startswith("model.layers.3.")}
        before = {k: model.state_dict()[k].clone() for k in own}
        model.load_state_dict(own, strict=False)
        wanted = logprobs(model, tokens)
        model.load_state_dict(before, strict=False)
    else:
        wanted = logprobs(exported(name), tokens)
    answer = client.completions.create(model=name, prompt=PROMPT, max_tokens=1, echo=True, logprobs=0)
    assert answer.choices[0].logprobs.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-4)


def test_64_requests_at_once_over_8_runs_get_their_own_model_s_answer(server, exported, tokenizer):
    """Half of them echo the prompt with its log-probabilities. Prompts are shared by the runs, so are their lengths."""
    prompts = [PROMPT[:n] for n in range(5, 13)]
    asked = [(name, prompt) for name in MODELS[:8] for prompt in prompts]

    async def ask():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=server.token, max_retries=0) as client:
            return await asyncio.gather(*(
                client.completions.create(
                    model=name, prompt=prompt, max_tokens=8, temperature=0, logprobs=1, echo=at % 2 == 0,
                    extra_body={"ignore_eos": True},
                )
                for at, (name, prompt) in enumerate(asked)
            ))  # fmt: skip

    answers = asyncio.run(ask())
    texts = set()
    for at, ((name, prompt), answer) in enumerate(zip(asked, answers, strict=True)):
        tokens = tokenizer(prompt)["input_ids"]
        wanted = greedy(exported(name), tokens, 8)
        choice = answer.choices[0]
        shown = tokenizer.decode([*tokens, *wanted] if at % 2 == 0 else wanted, skip_special_tokens=True)
        assert choice.text == shown, (name, prompt)
        own = logprobs(exported(name), [*tokens, *wanted])
        given = choice.logprobs.token_logprobs
        assert given[1:] == pytest.approx(own, abs=1e-4) if at % 2 == 0 else given == pytest.approx(own[-8:], abs=1e-4)
        texts.add(tuple(wanted))
    assert len(texts) > 32  # else the runs could not be told apart


def test_a_prompt_s_cache_is_not_shared_by_models(client, exported, tokenizer):
    """36 tokens fill a block of the KV cache, which each model but the first would find there."""
    tokens = tokenizer(PROMPT * 3)["input_ids"]
    for name in ("base", "layer-00", "layer-02", "full", "base"):
        answer = client.completions.create(model=name, prompt=PROMPT * 3, max_tokens=6, temperature=0, logprobs=1,
                                           extra_body={"ignore_eos": True})  # fmt: skip
        wanted = [*tokens, *greedy(exported(name), tokens, 6)]
        own = logprobs(exported(name), wanted)[-6:]
        assert answer.choices[0].logprobs.token_logprobs == pytest.approx(own, abs=1e-4), name


def test_streaming(client):
    asked = dict(model="layer-02", prompt=PROMPT, max_tokens=20, seed=3, logit_bias=NO_SPECIAL)
    whole = client.completions.create(**asked).choices[0].text
    pieces = [event.choices[0].text for event in client.completions.create(**asked, stream=True)]
    assert len(whole) == 20 and "".join(pieces) == whole and len(pieces) > 5


def test_samples_and_seeds(client):
    """`n` samples differ from each other, and come again with the same seed; sample i draws with seed + i."""
    asked = dict(model="layer-00", prompt=PROMPT, max_tokens=16, n=3, logit_bias=NO_SPECIAL)
    drawn = [[c.text for c in client.completions.create(**asked, seed=seed).choices] for seed in (1, 1, 9)]
    assert drawn[0] == drawn[1] and len({*drawn[0], *drawn[2]}) == 6


def test_stop(client):
    asked = dict(model="layer-00", prompt=PROMPT, max_tokens=40, seed=1, logit_bias=NO_SPECIAL)
    whole = client.completions.create(**asked).choices[0]
    assert whole.finish_reason == "length" and len(whole.text) == 40
    end = whole.text[10:12]
    cut = client.completions.create(**asked, stop=[end]).choices[0]
    assert cut.text == whole.text[: whole.text.index(end)] and cut.finish_reason == "stop"


def test_chat_goes_through_the_template(client):
    """Messages are rendered to `u:12+30=a:`; in pieces or whole, the answer is the completion of that."""
    messages = [{"role": "user", "content": "12+30"}]
    asked = dict(model="layer-01", max_tokens=12, temperature=0, extra_body={"ignore_eos": True})
    wanted = client.completions.create(prompt="u:12+30=a:", **asked).choices[0].text
    answer = client.chat.completions.create(messages=messages, **asked)
    assert answer.choices[0].message.content == wanted and answer.usage.prompt_tokens == 10
    pieces = client.chat.completions.create(messages=messages, stream=True, **asked)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == wanted


def test_tools_may_be_offered(client):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    asked = dict(model="full", messages=[{"role": "user", "content": "1"}], max_tokens=5, seed=0)
    answer = client.chat.completions.create(tools=tools, **asked).choices[0].message
    assert answer.content == client.chat.completions.create(**asked).choices[0].message.content
    assert not answer.tool_calls


def test_errors_have_openai_s_form(client, server):
    with pytest.raises(openai.NotFoundError, match="layer-09.*there are base, full, layer-00") as unknown:
        client.completions.create(model="layer-09", prompt="1")
    assert unknown.value.body["param"] == "model" and unknown.value.body["code"] == 404
    with pytest.raises(openai.NotFoundError, match="there are base"):
        client.chat.completions.create(model="layer-09", messages=[{"role": "user", "content": "1"}])
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64 tokens"):
        client.completions.create(model="full", prompt="1" * 300)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="full", prompt="1", temperature=-1)
    for key in ("", "sk-wrong"):
        with openai.OpenAI(base_url=server.url, api_key=key or "x", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError, match="must bear the token"):
                stranger.models.list()
    bare = httpx.post(f"{server.url}/completions", json={"prompt": "1"})
    assert bare.status_code == 401 and bare.json()["error"]["code"] == 401
    headers = {"Authorization": f"Bearer {server.token}"}
    garbled = httpx.post(
        f"{server.url}/completions", content="{", headers=headers | {"Content-Type": "application/json"}
    )
    assert garbled.status_code == 400 and garbled.json()["error"]["message"]
    assert httpx.get(f"{server.url}/nowhere", headers=headers).json()["error"]["code"] == 404
    assert client.completions.create(model="full", prompt="1", max_tokens=1).choices  # it serves on


def test_a_client_cannot_choose_weights_behind_the_model_s_name(client):
    """The engine's own argument, sent by a client, is dropped: it could name another run, or none that there is."""
    asked = dict(prompt=PROMPT, max_tokens=12, temperature=0)
    wanted = client.completions.create(model="base", **asked).choices[0].text
    for run in ("full", "layer-99"):
        body = {"vllm_xargs": {"layersweep_run": run}}
        assert client.completions.create(model="base", extra_body=body, **asked).choices[0].text == wanted


def test_ctrl_c_ends_it_and_all_its_processes(server, client):
    """As a terminal sends it, to the whole process group, while a response is streamed. Last: no server after."""
    processes = [server.process.pid, *(p.pid for p in psutil.Process(server.process.pid).children(recursive=True))]
    assert len(processes) > 2
    events = client.completions.create(model="full", prompt="1", max_tokens=60, stream=True)
    next(iter(events))
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(60) == 0
    said = server.process.stdout.read().splitlines()  # vLLM's log lines of the tests before are among them
    assert said[-1] == "stopped" and not any("Traceback" in line for line in said)
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in processes if psutil.pid_exists(pid)], timeout=20)
    assert not alive
