"""The code task: rows of the data sets in use, the program in a response, and whole scores."""

import base64
import json
import pickle
import zlib

import pytest

from layersweep.rollout.data.data_config import Columns
from layersweep.rollout.data.prompt_data import DataError
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


def test_the_row_s_own_program(tmp_path):
    """HumanEval's gets reward 1, MBPP's is wrong here; of APPS and DeepCoder it is the first of several. It is no part
    of what tells rows apart: two with other programs are one question."""
    (right,) = (task := task_of(tmp_path, [HUMANEVAL])).prompts("train", 1)
    assert task.right_response(right) == Response(HUMANEVAL["canonical_solution"], True)
    assert scores(task, [task.right_response(right).text]) == [(1, True)]
    (wrong,) = (task := task_of(tmp_path, [MBPP])).prompts("train", 1)
    assert scores(task, [task.right_response(wrong).text]) == [(0, True)]
    adds = {"question": "Add.", "input_output": json.dumps(APPS)}
    for solutions in (["first", "second"], json.dumps(["first", "second"])):
        task = task_of(tmp_path, [adds | {"solutions": solutions}, adds | {"solutions": ["another"]}])
        assert len(task.data.all_prompts("train")) == 1
        assert task.right_response(task.prompts("train", 1)[0]) == Response("first", True)
    (none,) = (task := task_of(tmp_path, [adds | {"solutions": ""}])).prompts("train", 1)
    assert task.right_response(none) is None


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
    called = {"kind": "function", "function": "addTo", "inputs": [[[1, 2], 3]], "outputs": [6], "wrapped": False}
    assert truth(FUNCTIONAL) == called
    assert truth({"problem": "p", "tests": json.dumps(APPS)})["inputs"] == ["1 2\n", "3\n4"]
    apps = truth({"question": "q", "input_output": json.dumps(CALLED)})
    assert (apps["outputs"], apps["wrapped"]) == ([[3], [7]], True)
    keyed = {"fn_name": "f", "inputs": [[{"1": "a", "-2": "b"}, {"x": 1}]], "outputs": [1]}
    assert truth({"question": "q", "tests": keyed})["inputs"] == [[{1: "a", -2: "b"}, {"x": 1}]]
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
        ({"fn_name": "a b", "inputs": [[1]], "outputs": [1]}, "'a b' is no name"),
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


PROGRAM = "import sys\nprint(sum(map(int, sys.stdin)))\n"
FUNCTION = "def add(a, b):\n    return a + b\n"
"""What a response should be read as, beside it; `add` is under test where a third value says so."""
EXTRACTED = [
    ("print(1)", "print(1)"),
    ("```py\nx = 1\n```\nIt prints:\n```text\n1\n```", "x = 1\n"),
    ("```python\nx = 1\n", "x = 1\n"),  # cut at the token limit
    ("```python\nx = 1\n```\n```python\nx = ", "x = 1\n"),
    ("```python\nx = 1\n```\n```python\ny = 2\n```", "y = 2\n"),
    ("<think>```python\nx = 1\n```</think>\n```python\ny = 2\n```", "y = 2\n"),
    ("```bash\nls\n```", None),
    (" \n", None),
    ("```python\n```", None),
    # Examples of input and output beside the program, labelled or not.
    (f"```python\n{PROGRAM}```\nExample:\n```\n1\n2\n```\ngives\n```\n3\n```", PROGRAM),
    (f"```python\n{PROGRAM}```\nRun it so:\n```\nprint(3)\n```", PROGRAM),
    (f"Input:\n```\n1 2\n```\n```python\n{PROGRAM}```", PROGRAM),
    (f"```\n{PROGRAM}```\nOutput:\n```\n3\n```", PROGRAM),
    (f"```\n{PROGRAM}```\nOutput:\n```\n3 4\nYES\n```", PROGRAM),
    (f"```\n{PROGRAM}```\n```bash\npython main.py\n```", PROGRAM),
    (f"Input:\n```\n1 2\n```\n```python\n{PROGRAM}", PROGRAM),  # ends without its fence
    (f"```\n3\n```\nThen\n```\n{PROGRAM}```", PROGRAM),
    ("```\n3\n```\nor\n```\n4\n```", "4\n"),  # no program: wrong in any case
    # The function under test, and how it is called.
    (f"```python\n{FUNCTION}```\nUsage:\n```python\nprint(add(1, 2))\n```", FUNCTION, "add"),
    (f"```\n{FUNCTION}```\nUsage:\n```\nadd(1, 2)\n```", FUNCTION, "add"),
    (f"```\n{FUNCTION}```\nTests:\n```python\nassert add(1, 2) == 3\n```", FUNCTION, "add"),
    ("```python\nclass Solution:\n    x = 1\n```\n```python\nSolution()\n```", "class Solution:\n    x = 1\n", "add"),
    (f"```python\ndef add(): 0\n```\nBetter:\n```python\n{FUNCTION}```", FUNCTION, "add"),
    ("```\n    return a + b\n```\nwhich gives\n```\n3\n```", "    return a + b\n", "add"),
    # Fences as models write them.
    (f"```Python3\n{PROGRAM}```", PROGRAM),
    (f"``` python\n{PROGRAM}```", PROGRAM),
    (f"```{{.python}}\n{PROGRAM}```", PROGRAM),
    (f"```python title=main.py\n{PROGRAM}```", PROGRAM),
    (f"~~~python\n{PROGRAM}~~~", PROGRAM),
    (f"````python\n{PROGRAM}# ```\n````", PROGRAM + "# ```\n"),
    ("```python\nx = 1\n```python\ny = 2\n```", "y = 2\n"),
    ("```python\nprint(1)```\nDone.", "print(1)"),
    ("  ```python\nx = 1\n  ```\n", "x = 1\n"),
    (f"1. So:\n   ```python\n   x = 1\n   if x:\n       x = 2\n   ```\n{PROGRAM}", "x = 1\nif x:\n    x = 2\n"),
    ("\ufeffx = 1", "x = 1"),
    ("```cpp\nint x;\n```\n```python\nx = 1\n```", "x = 1\n"),
    ("```python\nx = 1\n```\n```cpp\nint x;\n```", "x = 1\n"),
]


@pytest.mark.parametrize("case", EXTRACTED)
def test_extraction(case):
    text, program, *functions = case
    assert extract_program(text, functions) == program


# A problem, and a program that must get this reward. verl's and LiveCodeBench's judges agree where no comment says so.
GRADED = [
    ({"inputs": ["\n"], "outputs": ["0.333333333\n"]}, "print(1 / 3)", 1),  # verl alone
    ({"inputs": ["\n"], "outputs": ["0.333333333\n"]}, "print(0.33)", 0),
    ({"inputs": ["2\n"], "outputs": ["1.41421356 2\n"]}, "print(sqrt(int(input())), 2)", 1),
    ({"inputs": ["3\n1 2 3\n"], "outputs": ["6\n"]}, "input()\nprint(sum(map(int, sys.stdin.readline().split())))", 1),
    ({"inputs": ["40000\n"], "outputs": ["40000\n"]}, "def f(n): return n and f(n - 1) + 1\nprint(f(int(input())))", 1),
    (CALLED | {"inputs": [[1], [2]], "outputs": [[1], [2]]}, "def add(x): return [x]", 1),
    (CALLED | {"inputs": [[1], [2]], "outputs": [[1], [2]]}, "def add(x): return x", 1),
    (CALLED | {"inputs": [[1], [2]], "outputs": [[1], [2]]}, "def add(x): return [1]", 0),
    (CALLED | {"inputs": [[[1]], [[2]]], "outputs": [[1], [2]]}, "def add(x): return x", 1),
    (CALLED, "def add(a, b): return reduce(lambda x, y: x + y, accumulate([a, b]), -a)", 1),
    (CALLED, "from __future__ import annotations\ndef add(a: Optional[int], b): return a + b", 1),
    (CALLED, "@cache\ndef add(a, b): return a + b if gcd(a, b) < inf else comb(a, b)", 1),
    (CALLED, "def add(a, b):\n  h = []\n  heappush(h, a + b)\n  return heappop(h)", 1),
    (CALLED, "class Solution:\n  def add(self, a: int, b: int) -> int: return a + b\ndef add(a, b): return 0", 1),
    (CALLED, "print('nothing')", 0),
    ({"inputs": ["3\n"], "outputs": ["3\n"]}, "print(input())\nsys.exit(1)", 1),
    ({"inputs": ["3\n"], "outputs": ["3\n"]}, "print(open('/dev/stdin').read())", 1),
    ({"inputs": ["5000\n"], "outputs": ["1" + "0" * 5000 + "\n"]}, "print(10 ** int(input()))", 1),
    ({"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]}, "x = 1", 0),  # the standard library's does not count
    ({"fn_name": "f", "inputs": [[{"1": 2}]], "outputs": [2]}, "def f(d): return d[1]", 1),  # verl alone
]


def test_programs_that_the_peers_judge_right(tmp_path):
    task = task_of(tmp_path, [de_facto(f"problem {at}", tests) for at, (tests, _, _) in enumerate(GRADED)])
    prompts = sorted(task.prompts("train", len(GRADED)), key=lambda prompt: int(prompt.info["question"].split()[1]))
    responses = [Response(fenced(program) + "\nIt prints:\n```\n42\n```", True) for _, program, _ in GRADED]
    found = [score.reward for score in task.score(prompts, responses)]
    assert found == [reward for _, _, reward in GRADED]


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
