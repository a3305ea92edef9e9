"""Reward functions of a user's own: both signatures, several with weights, and functions that fail in every way."""

import json

import pytest
from pydantic import ValidationError

from layersweep.policies.user_code import sources
from layersweep.rollout.tasks.prompts import PromptsConfig
from layersweep.rollout.types import Response

ROWS = [{"question": f"{a}+{b}=", "answer": str(a + b), "level": a} for a in range(5) for b in range(5)]


def build(folder, source: str, reward="rewards.py:score", rows=ROWS, **settings):
    """The task of rewards in a file, over rows that are all in the train split."""
    (folder / "rewards.py").write_text(source)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(folder / "rows.jsonl"), "prompt_format": "plain", "selection_share": 0, "final_share": 0}
    rewards = json.loads(json.dumps(reward).replace("rewards.py", str(folder / "rewards.py")))
    config = {"data": data | settings.pop("data", {}), "reward": rewards, "processes": 1, "seconds": 5} | settings
    return PromptsConfig(**config).build()


def scored(task, *texts, prompts=None):
    """The scores of one response to each of the first prompts, or to those given."""
    prompts = prompts or task.prompts("train", len(texts))
    try:
        return task.score(prompts, [Response(text, True) for text in texts])
    finally:
        task.close()


VERL = """
def score(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0 if solution_str == ground_truth else len(solution_str) / 100
"""
TRL = """
def score(prompts, completions, answer, **columns):
    assert len(prompts) == len(completions) == len(answer) == len(columns["level"])
    return [1.0 if c == a else len(c) / 100 for c, a in zip(completions, answer)]
"""
TRL_CHAT = """
async def score(prompts, completions, answer, **columns):
    assert prompts[0][-1]["role"] == "user"
    return [1.0 if c[0]["content"] == a else len(c[0]["content"]) / 100 for c, a in zip(completions, answer)]
"""


@pytest.mark.parametrize(("source", "form"), [(VERL, "plain"), (VERL, "chat"), (TRL, "plain"), (TRL_CHAT, "chat")])
def test_both_signatures_give_the_same(tmp_path, source, form):
    """Right, then wrong with 0, 3 and 12 characters."""
    task = build(tmp_path, source, data={"prompt_format": form})
    prompts = task.prompts("train", 4)
    texts = [prompts[0].truth, "", "abc", "abcdefghijkl"]
    found = scored(task, *texts, prompts=prompts)
    assert [score.reward for score in found] == [1.0, 0.0, 0.03, 0.12]
    assert all(score.judged and score.format_ok and not score.numbers for score in found)


def test_what_a_function_is_given(tmp_path):
    """verl's `extra_info` is the row's, else all its columns; names that it does not take are left out."""
    source = "def score(solution_str, extra_info): return extra_info['level'] + len(extra_info) / 10"
    nested = [row | {"extra_info": {"level": row["level"], "index": i}} for i, row in enumerate(ROWS)]
    for rows, columns in ((ROWS, 3), (nested, 2)):
        task = build(tmp_path, source, rows=rows)
        prompts = task.prompts("train", 6)
        levels = [int(prompt.text[0]) for prompt in prompts]
        assert [s.reward for s in scored(task, *"abcdef", prompts=prompts)] == [k + columns / 10 for k in levels]


def test_settings_are_keyword_arguments(tmp_path):
    source = "def score(solution_str, ground_truth, scale): return scale * len(solution_str)"
    task = build(tmp_path, source, {"path": "rewards.py:score", "settings": {"scale": 0.5}})
    assert [score.reward for score in scored(task, "", "ab")] == [0.0, 1.0]


def test_a_dict_has_further_numbers(tmp_path):
    """Text is no number; `format_ok` is the verdict on the format."""
    source = """
def score(solution_str, ground_truth):
    return {"score": 0.5, "acc": solution_str == "a", "words": 3, "pred": "text", "format_ok": solution_str == "a"}
"""
    one, other = scored(build(tmp_path, source), "a", "b")
    assert (one.reward, one.format_ok, one.numbers) == (0.5, True, {"acc": 1.0, "words": 3.0})
    assert (other.reward, other.format_ok, other.numbers) == (0.5, False, {"acc": 0.0, "words": 3.0})


def test_several_rewards_are_weighed_and_each_is_recorded(tmp_path):
    """1 x right + 0.25 x brief - 2 x no, of which the last does not apply to the second response."""
    source = """
def right(solution_str, ground_truth): return float(solution_str == ground_truth)
def brief(solution_str, ground_truth): return {"score": 1 / len(solution_str), "length": len(solution_str)}
def no(completions, **columns): return [1.0 if "no" in c else None for c in completions]
"""
    rewards = ["rewards.py:right", {"path": "rewards.py:brief", "weight": 0.25},
               {"path": "rewards.py:no", "weight": -2, "name": "refusal"}]  # fmt: skip
    task = build(tmp_path, source, rewards)
    prompts = task.prompts("train", 2)
    one, other = scored(task, "no", prompts[1].truth, prompts=prompts)
    assert (one.reward, one.numbers) == (-1.875, {"right": 0, "brief": 0.5, "brief.length": 2, "refusal": 1})
    length = len(prompts[1].truth)
    assert (other.reward, other.numbers) == (
        1 + 0.25 / length, {"right": 1, "brief": 1 / length, "brief.length": length}
    )  # fmt: skip


FAULTY = """
import time
def helper(): raise KeyError("of the helper")
def score(solution_str, ground_truth):
    match solution_str:
        case "raise": helper()
        case "exit": raise SystemExit("enough")
        case "end": __import__("os")._exit(3)
        case "huge": return 1e21
        case "integer": return {"score": 10**400}
        case "hang": time.sleep(1000)
        case "spin":
            while True: pass
        case "memory": return len(bytearray(10 << 30))
        case "nan": return float("nan")
        case "text": return "0.5"
        case "nothing": return None
        case "dict": return {"acc": 1}
        case "print": print("{}" * 10000); open(__file__, "a").write("x" * 100000)
    return 1.0
"""
FAULTS = {
    "raise": "KeyError: 'of the helper'",
    "exit": "SystemExit: enough",
    "end": "the process ended with status 3",
    "hang": "no answer within 1 s",
    "spin": "more than 1 s of CPU time",
    "memory": "more than 4 GiB of memory",
    "nan": "ValueError: the reward is nan; a reward is finite, and 1e+20 at most",
    "huge": "ValueError: the reward is 1e+21; a reward is finite, and 1e+20 at most",
    "integer": f"ValueError: `score` is 1{'0' * 39}; a reward is finite",
    "text": "TypeError: the reward is no number but str '0.5'",
    "nothing": "TypeError: the reward is no number but NoneType 'None'",
    "dict": "ValueError: gave a dict without `score`: dict \"{'acc': 1}\"",
    "print": "File too large",
}


def test_a_call_that_fails_costs_its_own_response_alone(tmp_path):
    task = build(tmp_path, FAULTY, seconds=1)
    texts = ["fine", *(text for fault in FAULTS for text in (fault, "fine"))]
    found = scored(task, *texts, prompts=(task.prompts("train", 25) * 2)[: len(texts)])
    assert [(s.reward, s.judged, s.format_ok) for s in found] == [
        (1.0, True, True) if text == "fine" else (0.0, False, False) for text in texts
    ]
    messages = task.notices()
    for fault, reason in FAULTS.items():
        if fault in ("spin", "hang"):
            continue  # which of two clocks ends a loop depends on the machine
        assert sum(reason in message for message in messages) == 1, fault
    traceback = next(message for message in messages if "of the helper" in message)
    assert "rewards.py:score failed on 1 of 27 responses" in traceback and "on 'raise'" in traceback
    assert 'line 3, in helper\n    def helper(): raise KeyError("of the helper")' in traceback
    assert not any("reward_calls" in message for message in messages)


def test_a_kind_of_failure_is_reported_once_with_its_count(tmp_path):
    task = build(tmp_path, "def score(solution_str, ground_truth): return 1 / int(solution_str)")
    prompts = task.prompts("train", 5)
    for _ in range(2):
        found = task.score(prompts, [Response(text, True) for text in ("0", "0", "x", "2", "0")])
    task.close()
    assert [score.reward for score in found] == [0, 0, 0, 0.5, 0]
    one, other = task.notices()
    assert task.notices() == []
    assert "failed on 3 of 5 responses" in one and "ZeroDivisionError: division by zero" in one
    assert "failed on 1 of 5 responses" in other and "ValueError: invalid literal for int()" in other


def test_a_reward_that_always_hangs_ends_in_bounded_time(tmp_path):
    """Of 25 calls 16 are waited for, 0.3 s each, and the others given up."""
    task = build(tmp_path, "import time\ndef score(solution_str, ground_truth): time.sleep(100)", seconds=0.3)
    assert [score.judged for score in scored(task, *["x"] * 25)] == [False] * 25
    assert [notice.rpartition(": ")[2] for notice in task.notices()] == [
        "no answer within 0.3 s", "not called, since 16 calls of the batch were late"
    ]  # fmt: skip


def test_equal_responses_to_a_prompt_are_scored_once(tmp_path):
    source = "calls = []\ndef score(solution_str, ground_truth):\n    calls.append(1)\n    return len(calls)"
    task = build(tmp_path, source)
    one, other = task.prompts("train", 2)
    found = scored(task, "a", "a", "b", "a", prompts=[one, one, one, other])
    assert [score.reward for score in found] == [1, 1, 2, 3]


REFUSED = {
    "no file": (VERL, "nowhere.py:score", "importing nowhere.py fails: FileNotFoundError"),
    "no function": (VERL, "rewards.py:scores", "rewards.py has no scores"),
    "no callable": ("score = 1", "rewards.py:score", "rewards.py:score is no function but int"),
    "fails to import": ("import nowhere_at_all", "rewards.py:score", "ModuleNotFoundError: No module named 'nowhere_"),
    "no Python": ("def score(:", "rewards.py:score", "SyntaxError: invalid syntax (rewards.py, line 1)"),
    "a class": ("class score:\n    def __call__(self, solution_str): return 1.0", "rewards.py:score",
                "rewards.py:score is a class; make an instance of it in the file, and name that"),
    "ends at its import": ("raise SystemExit(3)", "rewards.py:score",
                           "importing rewards.py fails: SystemExit: 3 (rewards.py, line 1)"),
    "any keywords": ("def score(*args, **names): return 1", "rewards.py:score", "takes (*args, **names); a reward"),
    "another signature": ("def score(text, truth): ...", "rewards.py:score",
                          r"takes (text, truth); a reward takes (data_source, solution_str, ground_truth, extra_info)"),
    "raises": ("def score(solution_str, ground_truth):\n    return 1 / 0", "rewards.py:score",
               'rewards.py:score fails on row'),
    "text": ("def score(solution_str, ground_truth): return ground_truth", "rewards.py:score",
             "TypeError: the reward is no number but str"),
    "too few": ("def score(completions, **columns): return []", "rewards.py:score",
                "gave list '[]' for a list of one completion"),
    "an argument too few": ("def score(solution_str, ground_truth, scale): return 1", "rewards.py:score",
                            "missing 1 required positional argument: 'scale'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_reward_is_tried_before_anything_starts(tmp_path, name):
    source, path, says = REFUSED[name]
    task = build(tmp_path, source, path)
    with pytest.raises(ValueError) as error:
        task.check()
    said = str(error.value).replace(f"{tmp_path}/", "")
    assert says in said and "reward_calls" not in said, said


def test_the_trial_names_row_and_line(tmp_path):
    task = build(tmp_path, "def score(solution_str, ground_truth):\n    return 1 / 0", rows=ROWS[:1])
    with pytest.raises(ValueError) as error:
        task.check()
    assert str(error.value).endswith(f'ZeroDivisionError: division by zero (File "{tmp_path}/rewards.py", line 2)')
    assert "fails on row 1:" in str(error.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import json\ndef score(solution_str):\n    return json.loads('{')", "line 3)"),  # not json's own line
        ("def score(solution_str):\n    with open('x', 'w') as file: file.write('x')",
         "line 2); it may write files of at most file_mib, 0 unless set"),
        ("import sqlite3\ndef score(solution_str):\n    sqlite3.connect('x.db').execute('CREATE TABLE x (y)')",
         "line 3); it may write files of at most file_mib, 0 unless set"),
        ("import tempfile\ndef score(solution_str):\n    return len(tempfile.mkdtemp() + tempfile.mkstemp()[1])",
         "line 3); it may write files of at most file_mib, 0 unless set"),
    ],
)  # fmt: skip
def test_the_trial_names_the_users_own_line_and_file_mib(tmp_path, monkeypatch, source, says):
    monkeypatch.chdir(tmp_path)
    task = build(tmp_path, source, rows=ROWS[:1])
    with pytest.raises(ValueError) as error:
        task.check()
    assert f'(File "{tmp_path}/rewards.py", {says}' in str(error.value), str(error.value)


def test_a_reward_that_works_passes(tmp_path):
    """Modules beside the file are found, and no answer is needed."""
    (tmp_path / "beside_of_a_test.py").write_text("def length(text): return len(text)")
    source = "from beside_of_a_test import length\ndef score(solution_str, ground_truth): return length(solution_str)"
    rows = [{"question": row["question"]} for row in ROWS]
    task = build(tmp_path, source, rows=rows)
    task.check()
    assert [score.reward for score in scored(task, "abc")] == [3]


def test_a_file_in_a_package_imports_from_it(tmp_path):
    """By a name relative to itself, to the package's other folders, and by the package's name."""
    files = {
        "pack_of_rewards/__init__.py": "",
        "pack_of_rewards/words.py": "a = 1",
        "pack_of_rewards/inner/__init__.py": "",
        "pack_of_rewards/inner/others.py": "b = 20",
        "pack_of_rewards/inner/mine.py": "from ..words import a\nfrom .others import b\n"
        "from pack_of_rewards.inner.others import b as c\ndef score(solution_str): return a + b + c / 100",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    task = build(tmp_path, "", f"{tmp_path}/pack_of_rewards/inner/mine.py:score")
    task.check()
    assert [score.reward for score in scored(task, "x")] == [21.2]
    assert list(sources(task.config.reward[0].path)) == sorted(files)


def test_asynchronous_calls_share_a_loop(tmp_path):
    """As a client of a module belongs to the loop that it was first used in."""
    source = """
import asyncio
first = []
async def score(solution_str):
    first.append(asyncio.get_running_loop())
    return float(first[0] is first[-1])
"""
    assert [score.reward for score in scored(build(tmp_path, source), "a", "b", "c")] == [1, 1, 1]


def test_a_module_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = build(tmp_path, VERL, "rewards.score")
    task.check()
    assert [score.reward for score in scored(task, "abc")] == [0.03]


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("score", "'score' names no object; write it as my_file.py:name, or my_module.name"),
        ("my-file:score", "names no object"),
        ([], "at least 1 item"),
        (["a.py:score", "b.py:score"], "two rewards are named score; give one a `name` of its own"),
        ({"path": "a.py:score", "weights": 1}, "Extra inputs are not permitted"),
        (7, "valid dictionary or instance of RewardConfig"),
    ],
)  # fmt: skip
def test_what_names_no_reward_is_refused(reward, says):
    with pytest.raises(ValidationError, match=says):
        PromptsConfig(data={"path": "rows.jsonl"}, reward=reward)


def test_demonstrations_of_a_tiny_model(tmp_path):
    """35 % right; another row's answer is right by chance too: of 25 sums, 5 + 2 (16 + 9 + 4 + 1) = 85 of 625 pairs
    agree, so 0.35 + 0.65 x 0.136 = 0.438. Characters are those of prompts and answers."""
    task = build(tmp_path, VERL)
    assert task.alphabet == "+012345678="
    shown = task.demonstrations(2000, seed=1)
    assert shown == task.demonstrations(2000, seed=1)
    right = sum(int(answer) == int(prompt[0]) + int(prompt[2]) for prompt, answer in shown) / 2000
    assert abs(right - 0.438) < 0.04


def test_a_tiny_model_depends_on_the_data_and_not_on_the_reward(tmp_path):
    one = build(tmp_path, VERL).config.demonstrated
    assert build(tmp_path, TRL, data={"template": "{question}"}).config.demonstrated == one
    assert build(tmp_path, VERL, rows=ROWS[1:]).config.demonstrated != one


def test_rewards_that_trl_brings(tmp_path):
    """`think_format_reward` and `accuracy_reward`, by their dotted paths: 1 each for the form and for the answer."""
    pytest.importorskip("trl")
    rows = [{"question": "2 + 2?", "solution": "\\boxed{4}"}]
    rewards = ["trl.rewards.think_format_reward", "trl.rewards.accuracy_reward"]
    task = build(tmp_path, "", rewards, rows=rows, data={"prompt_format": "chat"}, seconds=20)
    thought = "<think>Two and two.</think>\n"
    texts = [thought + "\\boxed{4}", "\\boxed{4}", thought + "\\boxed{5}", "five"]
    found = scored(task, *texts, prompts=task.prompts("train", 1) * 4)
    assert task.notices() == []
    assert [score.reward for score in found] == [2.0, 1.0, 1.0, 0.0]
    assert found[2].numbers == {"think_format_reward": 1.0, "accuracy_reward": 0.0}
