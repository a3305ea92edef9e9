"""The code task: rows of the data sets in use, the program in a response, and whole scores."""

import base64
import json
import pickle
import zlib

import pytest

from layersweep.rollout.data.prompt_data import Columns, DataError
from layersweep.rollout.tasks.code import CodeConfig, complete, extract_program
from layersweep.rollout.tasks.code_data import parse_tests, question_of
from layersweep.rollout.types import Response

HUMANEVAL = {
    "task_id": "HumanEval/32",
    "prompt": (
        "import math\n\n\ndef poly(xs: list, x: float):\n"
        "    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n\n\n"
        'def find_zero(xs: list):\n    """ A zero of a line.\n    >>> find_zero([1, 2])\n    -0.5\n    """\n'
    ),
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "test": (
        "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    for xs in ([1, 2], [-6, 3]):\n"
        "        assert math.fabs(poly(xs, candidate(list(xs)))) < 1e-4\n"
    ),
    "entry_point": "find_zero",
}
MBPP = {
    "task_id": 126,
    "text": "Write a python function to find the sum of common divisors of two given numbers.",
    "code": "def sum(a,b): \r\n    return 0",
    "test_setup_code": "",
    "test_list": ["assert sum(10,15) == 6", "assert sum(100,150) == 93", "assert sum(4,6) == 3"],
}
STDIN = {
    "question_content": "Read n and print twice n.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}]),
    "private_test_cases": base64.b64encode(
        zlib.compress(pickle.dumps(json.dumps([{"input": "21\n", "output": "42\n", "testtype": "stdin"}])))
    ).decode(),
    "metadata": "{}",
}
FUNCTIONAL = {
    "question_content": "Add the numbers of a list to k.",
    "starter_code": "class Solution:\n    def addTo(self, nums: List[int], k: int) -> int:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]),
    "private_test_cases": "[]",
    "metadata": json.dumps({"func_name": "addTo"}),
}
APPS = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
CALLED = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]}

TWICE = "print(2 * int(input()))"


def de_facto(question, ground_truth):
    return {
        "data_source": "code",
        "prompt": [{"role": "user", "content": question}],
        "ability": "code",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": 0},
    }


def truth(raw):
    return parse_tests(question_of(raw, Columns()), Columns())


def task_of(tmp_path, rows, **settings):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": str(path), "selection_share": 0, "final_share": 0}
    return CodeConfig(data=data, cpu_seconds=2, **settings).build()


def scores(task, answers):
    """For a task of one problem."""
    (prompt,) = task.prompts("train", 1)
    found = task.score([prompt] * len(answers), [Response(text, True) for text in answers])
    return [(score.reward, score.format_ok) for score in found]


def fenced(program, language="python"):
    return f"Let me think.\n```{language}\n{program}\n```\nDone."


def test_humaneval(tmp_path):
    task = task_of(tmp_path, [HUMANEVAL])
    assert task.prompts("train", 1)[0].messages[0]["content"] == HUMANEVAL["prompt"]
    whole = "def find_zero(xs: list):\n    return -xs[0] / xs[1]"
    answers = {
        HUMANEVAL["canonical_solution"]: (1, True),
        "\n    return -xs[0] / xs[1]\n\n\ndef unrelated(:\n": (1, True),  # the body ends where something else begins
        fenced(whole): (1, True),
        fenced(HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]): (1, True),
        "    return 0.0\n": (0, True),
        fenced("def poly(xs, x): return 0.0\ndef find_zero(xs): return 0.0"): (0, True),
        fenced("def find_zero(xs): return -xs[0] /"): (0, False),
        fenced("import os\nos._exit(0)\ndef find_zero(xs): pass"): (0, True),
    }
    assert scores(task, list(answers)) == list(answers.values())


def test_mbpp(tmp_path):
    task = task_of(tmp_path, [MBPP])
    assert "assert sum(10,15) == 6" in task.prompts("train", 1)[0].messages[0]["content"]
    right = "import builtins\ndef sum(a, b): return builtins.sum(d for d in range(1, a + 1) if a % d == b % d == 0)"
    answers = {fenced(right): (1, True), right: (1, True), fenced("def sum(a, b): return 6"): (0, True), "": (0, False)}
    assert scores(task, list(answers)) == list(answers.values())


def test_livecodebench_standard_input(tmp_path):
    task = task_of(tmp_path, [STDIN])
    answers = {
        fenced(TWICE): (1, True),
        fenced("print(2)"): (0, True),  # the public case alone
        fenced("print(42)\n") + fenced(TWICE, "py"): (1, True),
        "I would double it.": (0, False),
        fenced("n = int(input()\nprint(n)"): (0, False),
    }
    assert scores(task, list(answers)) == list(answers.values())


def test_livecodebench_functional(tmp_path):
    task = task_of(tmp_path, [FUNCTIONAL])
    assert "def addTo(self, nums: List[int], k: int)" in task.prompts("train", 1)[0].messages[0]["content"]
    method = "class Solution:\n    def addTo(self, nums: List[int], k: int) -> int:\n        return "
    answers = {
        fenced(method + "sum(nums) + k"): (1, True),
        fenced("def addTo(nums, k): return sum(nums) + k"): (1, True),
        fenced(method + "sum(nums)"): (0, True),
    }
    assert scores(task, list(answers)) == list(answers.values())


@pytest.mark.parametrize("spelled", [lambda tests: tests, json.dumps])
def test_the_de_facto_layout_with_every_kind_of_ground_truth(tmp_path, spelled):
    add = "def add(a, b): return a + b"
    rows = {
        "APPS": (APPS, "print(sum(map(int, open(0).read().split())))"),
        "APPS function": (CALLED, add),
        "DeepCoder": ([{"type": "stdin_stdout", "input": "4\n", "output": "8\n"}], TWICE),
        "DeepCoder function": ([{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": [3]}], add),
        "MBPP": (["assert add(1, 2) == 3"], add),
        "HumanEval": ({"test": "def check(c):\n    assert c(1, 2) == 3", "entry_point": "add"}, add),
    }
    task = task_of(tmp_path, [de_facto(name, spelled(tests)) for name, (tests, _) in rows.items()])
    prompts = task.prompts("train", len(rows))
    right = [Response(fenced(rows[prompt.info["question"]][1]), True) for prompt in prompts]
    wrong = [Response(fenced("def add(a, b): return a - b\nprint(0)"), True) for _ in prompts]
    assert [score.reward for score in task.score(prompts, right)] == [1] * len(rows)
    assert [(score.reward, score.format_ok) for score in task.score(prompts, wrong)] == [(0, True)] * len(rows)
    assert prompts[0].info["ability"] == "code"


def test_tests_as_data():
    assert truth(STDIN) == {"kind": "script", "inputs": ["1\n", "21\n"], "outputs": ["2\n", "42\n"]}
    assert truth(FUNCTIONAL) == {"kind": "function", "function": "addTo", "inputs": [[[1, 2], 3]], "outputs": [6]}
    assert truth({"problem": "p", "tests": json.dumps(APPS)})["inputs"] == ["1 2\n", "3\n4"]
    assert truth({"question": "q", "input_output": json.dumps(CALLED)})["outputs"] == [3, 7]
    assert truth(MBPP)["functions"] == ["sum"]
    assert truth({"question": "q", "answer": "assert f() == 1"})["tests"] == "assert f() == 1"


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ({"inputs": ["1"], "outputs": []}, "1 test inputs but 0 outputs"),
        ({"inputs": [], "outputs": []}, "no tests"),
        ([], "no tests"),
        ("f() == 1", "without a single assert"),
        ("assert f( == 1", "cannot be understood"),
        ({"other": 1}, "cannot be understood"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], "cannot be understood"),
        ({"fn_name": "f", "inputs": ["[1"], "outputs": ["1"]}, "Expecting"),
    ],
)
def test_rows_without_usable_tests_are_named(tmp_path, tests, message):
    with pytest.raises(DataError, match=rf"row 2: .*{message}"):
        task_of(tmp_path, [de_facto("good", ["assert f() == 1"]), de_facto("bad", tests)])


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    packed = base64.b64encode(zlib.compress(pickle.dumps(Runs()))).decode()
    with pytest.raises(ValueError, match="pickle asks for"):
        truth(STDIN | {"private_test_cases": packed})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_text_is_read_whatever_the_protocol(protocol):
    cases = json.dumps([{"input": "é\n" * 200, "output": "\\u00e9\n", "testtype": "stdin"}], ensure_ascii=False)
    packed = base64.b64encode(zlib.compress(pickle.dumps(cases, protocol))).decode()
    tests = truth(STDIN | {"public_test_cases": "[]", "private_test_cases": packed})
    assert (tests["inputs"], tests["outputs"]) == (["é\n" * 200], ["\\u00e9\n"])


def test_extraction():
    assert extract_program("print(1)") == "print(1)"
    assert extract_program("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```\n") == "y = 2\n"
    assert extract_program("```py\nx = 1\n```\nIt prints:\n```text\n1\n```") == "x = 1\n"
    assert extract_program("```python\nx = 1\n") == "x = 1\n"  # cut at the token limit
    assert extract_program("```python\nx = 1\n```\n```python\nx = ") == "x = 1\n"
    assert extract_program("<think>```python\nx = 1\n```</think>\n```python\ny = 2\n```") == "y = 2\n"
    assert extract_program("```bash\nls\n```") is None
    assert extract_program(" \n") is None and extract_program("```python\n```") is None


def test_completion():
    stub = 'def f(x):\n    """Doc."""\n'
    assert complete(stub, "f", "    return x\n\n    # more\nprint(f(1))\n") == stub + "    return x\n\n    # more\n"
    assert complete(stub, "f", "def f(x): return x") == stub + "\n\ndef f(x): return x"
    assert complete(stub, "f", "    def g(): pass\n    return g\n").endswith("return g\n\n")


def test_many_responses_of_one_prompt_run_once(tmp_path, monkeypatch):
    task = task_of(tmp_path, [STDIN], processes=2)
    judged = []
    judge = task._sandbox.judge
    monkeypatch.setattr(task._sandbox, "judge", lambda programs: judged.extend(programs) or judge(programs))
    assert scores(task, [fenced(TWICE)] * 5 + [TWICE, "?"]) == [(1, True)] * 6 + [(0, False)]
    # The fenced one ends with a line break, the bare one does not.
    assert len(judged) == 3


def test_scores_arbitrary_text(tmp_path):
    task = task_of(tmp_path, [STDIN])
    texts = ["\0", "\ud800", "```", "``````", "(" * 50_000, "é " * 1000, "print(input" * 500, "-" * 50_000 + "1"]
    assert scores(task, texts) == [(0, False)] * len(texts)


def test_unknown_keys_and_bad_values_are_refused():
    with pytest.raises(ValueError, match="sandbox"):
        CodeConfig(data={"path": "x"}, sandbox="docker")
    with pytest.raises(ValueError, match="timeout"):
        CodeConfig(data={"path": "x"}, timeout=3)
