"""docs/bring-your-own: the files of its pages are written into one folder, and their commands run there."""

import json
import re
import runpy
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

from layersweep.cli import main
from layersweep.orchestrator.spec.load import load_spec
from layersweep.policies.algorithms.loss import LossTokens
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.environments.custom import CustomEnvironmentConfig
from layersweep.rollout.environments.process_pool import Call
from layersweep.rollout.tasks.prompts import PromptsConfig
from layersweep.rollout.types import Response

from .pages import ROOT, blocks

FOLDER = ROOT / "docs" / "bring-your-own"
PAGES = sorted(FOLDER.glob("*.md"))
FILES = {block.name: block.text for block in blocks("python", "yaml", pages=PAGES) if block.name}
COMMANDS = [line.removeprefix("$ ") for block in blocks("console", pages=PAGES) for line in block.text.splitlines()]
LATER = ("layersweep run", "layersweep export")
"""Beginnings of commands that start a sweep or need one: tests/end_to_end/test_bring_your_own.py runs one."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's files, and the rows that one of them makes."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_rows.py")
    return tmp_path


def test_the_pages_have_the_files_and_commands_that_are_tested():
    assert len(FILES) == 15 and len(COMMANDS) == 9, (sorted(FILES), COMMANDS)


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.startswith(LATER)])
def test_a_command_of_the_pages_runs(folder, command, capsys):
    program, *words = shlex.split(command)
    if program == "python":
        runpy.run_path(words[0])
        return
    assert program == "layersweep" and main(words) == 0
    said = capsys.readouterr().out
    if words[0] == "data":
        assert "50 rows: " in said and re.search(r"(\d+) of \1 get reward 1 as they stand", said)


def test_both_signatures_and_several_rewards_of_the_pages(folder):
    """Right, a wrong number, no number: 1, 0.1 and 0 by each; 1.5, 0.15 and 0 by both with their weights."""
    data = {"path": "rows.jsonl", "prompt_format": "plain"}
    expected = {
        "my_rewards.py:score": [1, 0.1, 0],
        "trl_rewards.py:score": [1, 0.1, 0],
        "several": [1.5, 0.15000000000000002, 0],
    }
    for reward, rewards in expected.items():
        named = yaml.safe_load(FILES["several.yaml"])["reward"] if reward == "several" else reward
        task = PromptsConfig(data=data, reward=named).build()
        task.check()
        prompts = task.prompts("train", 1) * 3
        responses = [Response(text, True) for text in (prompts[0].truth, "7", "x")]
        assert [score.reward for score in task.score(prompts, responses)] == rewards
        task.close()


def test_the_environment_of_the_pages(folder):
    section = load_spec("world.yaml").task
    assert isinstance(section, CustomEnvironmentConfig)
    section.build().check()


def test_the_tools_of_the_pages(folder):
    """`step` gets a call as a dict, and 100 * 101 = 10100 is the answer of start state 900."""
    task = load_spec("tools.yaml").task.build()
    task.check()
    call = '<tool_call>{"name": "multiply", "arguments": {"a": 100, "b": 101}}</tool_call>'
    process = task.processes.of(900)
    states = [process.submit([Call(0, 900, actions, "")]).result()[0] for actions in ([], [call])]
    assert [state.observation[:25] for state in states] == ["What is 100 times 101? An", "10100"]
    [end] = process.submit([Call(0, 900, [call, "10100"], states[1].anchor)]).result()
    assert (end.reward, end.success, end.terminated) == (1.0, 1.0, True)
    task.close()


def test_the_loss_of_the_pages(folder):
    """Ratios 1, e^.5, e^-.5 and e^.1 with a region of 1.5: the middle two have no gradient, the others rho A's."""
    names = runpy.run_path("my_loss.py")
    logp = torch.tensor([0.0, 0.5, -0.5, 0.1], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, 1.0, -2.0])
    tokens = LossTokens(logp, torch.zeros(4), advantage, torch.ones(4), torch.arange(4))
    objective, clipped = names["Trusted"]().surrogate(tokens)
    (gradient,) = torch.autograd.grad(objective.sum(), logp)
    assert clipped.tolist() == [False, True, True, False]
    assert gradient.tolist() == pytest.approx([1.0, 0.0, 0.0, -2 * 1.1051709])


class Judge(BaseHTTPRequestHandler):
    """Says yes where the answer is the right one; to those in `trouble` it does what is told there first."""

    asked: list[str] = []
    trouble: dict[str, list[object]] = {}

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.asked.append(question)
        right, answer = re.search(r"Right answer: (.*)\nAnswer: (.*)", question).groups()
        said = "Yes." if right == answer else "No."
        trouble = self.trouble[answer].pop(0) if self.trouble.get(answer) else None
        if isinstance(trouble, threading.Event):
            trouble.wait(60)  # until the client has gone
            return
        self.send_response(trouble if isinstance(trouble, int) else 200)
        self.end_headers()
        content = trouble if isinstance(trouble, str) else said
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def judge(folder, monkeypatch):
    """The task of the page, with two processes and four seconds of patience; makes it anew at each call."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Judge, "asked", [])
    monkeypatch.setattr(Judge, "trouble", {})
    monkeypatch.setenv("JUDGE_ADDRESS", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("JUDGE_SECONDS", "4")
    (section,) = [yaml.safe_load(b.text)["task"] for b in blocks("yaml", pages=PAGES) if b.name == "judged.yaml"]
    tasks = []

    def make():
        tasks.append(PromptsConfig(**section | {"processes": 2}).build())
        return tasks[-1]

    yield make, server
    for task in tasks:
        task.close()
    server.shutdown()
    server.server_close()


def test_the_judge_of_the_pages(judge):
    """Asked once for equal responses, of which it says yes to the right one. A later start finds its words on disk."""
    make, _ = judge
    for start in range(2):
        task = make()
        prompts = task.prompts("train", 1) * 3
        responses = [Response(text, True) for text in (prompts[0].truth, "7", "7")]
        assert [score.reward for score in task.score(prompts, responses)] == [1.0, 0.0, 0.0], start
    assert len(Judge.asked) == 2


def test_a_judge_that_fails_gives_no_verdict_and_is_asked_again(judge):
    """Two errors that pass, of a busy and of a slow server; three of a broken one; a refusal, asked once; words that
    are no verdict. Only verdicts are kept: the next time these get theirs, as nothing is the matter then."""
    make, _ = judge
    task, hung = make(), threading.Event()
    Judge.trouble = {"1": [503], "2": [hung], "3": [500, 502, 503], "4": [404], "5": ["I cannot tell."]}
    responses = [Response(text, True) for text in "12345"]
    prompts = task.prompts("train", 1) * 5
    scores = task.score(prompts, responses)
    hung.set()
    assert [score.judged for score in scores] == [True, True, False, False, False]
    assert [score.reward for score in scores] == [0.0] * 5
    attempts = [sum(question.endswith(f"Answer: {text}") for question in Judge.asked) for text in "12345"]
    assert attempts == [2, 2, 3, 1, 1]
    notices = " ".join(task.notices())
    assert "HTTP Error 503" in notices or "HTTP Error 404" in notices
    assert "the judge says neither yes nor no but 'I cannot tell.'" in notices
    assert all(score.judged for score in task.score(prompts, responses))
    assert len(Judge.asked) == 9 + 3


def test_a_judge_that_is_not_there_gives_no_verdict(judge):
    make, server = judge
    task = make()
    prompts = task.prompts("train", 1)
    server.shutdown()
    server.server_close()
    lost = task.score(prompts, [Response("8", True)])
    assert not lost[0].judged and "URLError" in task.notices()[0]


def test_the_data_section_of_the_pages():
    (section,) = [yaml.safe_load(block.text) for block in blocks("yaml", pages=[FOLDER / "data.md"])]
    assert DataConfig(**section["data"]).columns.answer == "extra_info.answer"
