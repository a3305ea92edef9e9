"""Mathematics: answers extracted and judged, within bounds, from threads and inside a Ray actor."""

import json
import subprocess
import sys
import threading
import time
from decimal import Decimal

import pytest

from layersweep.orchestrator.execution.ray_session import start_ray
from layersweep.rollout.data.row_readers import DataError
from layersweep.rollout.tasks.math import MathConfig, MathTask, truths_of
from layersweep.rollout.tasks.math_answer import final_answer, marked_answer
from layersweep.rollout.tasks.math_equality import plainly_equal
from layersweep.rollout.types import Prompt, Response, Score
from tests.rollout.tasks.math_pairs import RIGHT_PAIRS, WRONG_PAIRS

RIGHT, WRONG = Score(1.0, True), Score(0.0, True)
NO_ANSWER = Score(0.0, False)
NO_VERDICT = Score(0.0, True, judged=False)

PAIRS = [
    # GSM8K and \boxed{} forms, which a string match judges too
    ("72", "48 / 2 = 24, 48 + 24 = 72.\n#### 72", RIGHT),
    ("72", "#### 71", WRONG),
    ("72", "#### 72\nSo it is.", RIGHT),
    ("1000", "#### 1,000", RIGHT),
    ("1,234,567", "#### 1234567", RIGHT),
    ("-5", "#### -5", RIGHT),
    ("72", "First \\boxed{71}, no: \\boxed{72}.", RIGHT),
    ("72", "First \\boxed{72}, no: \\boxed{71}.", WRONG),
    ("72", "We get $\\boxed 72$", RIGHT),
    ("\\frac{1}{2}", "\\boxed{\\dfrac{1}{2}}", RIGHT),
    ("72", "#### 5\n\\boxed{72}", RIGHT),
    # Words before the answer, or nothing but the answer
    ("72", "The answer is 72.", RIGHT),
    ("72", "**Answer:** 72", RIGHT),
    ("72", "The answer is not 71. The final answer is: $72$. I hope it is correct.", RIGHT),
    ("72", "72", RIGHT),
    ("72", "72.", RIGHT),
    ("72", "So 48 + 24 = 72", RIGHT),
    ("72", "Working: 48 / 2 = 24\nIn total she sold 72 clips in both months.", RIGHT),
    ("24", "Working: 48 / 2 = 24\nIn total she sold 72 clips in both months.", WRONG),
    ("Evelyn", "The answer is \\text{evelyn}.", RIGHT),
    ("(B)", "Answer: \\boxed{\\text{B}}", RIGHT),
    ("C", "\\boxed{D}", WRONG),
    # Fractions and decimals
    ("1/2", "\\boxed{0.5}", RIGHT),
    ("\\frac{3}{4}", "\\boxed{6/8}", RIGHT),
    ("1\\frac{1}{2}", "\\boxed{1.5}", RIGHT),
    ("11/2", "\\boxed{1 1/2}", WRONG),
    ("\\frac{1}{3}", "\\boxed{0.33}", WRONG),
    ("\\frac{-2}{3}", "\\boxed{-\\frac{2}{3}}", RIGHT),
    ("0.05", "\\boxed{.05}", RIGHT),
    ("12", "\\boxed{12.0}", RIGHT),
    # Units, money, degrees, percentages
    ("5 \\text{ cm}", "\\boxed{5}", RIGHT),
    ("5", "\\boxed{5\\text{ cm}}", RIGHT),
    ("18", "\\boxed{\\$18.00}", RIGHT),
    ("\\$18", "\\boxed{17}", WRONG),
    ("90^\\circ", "\\boxed{90}", RIGHT),
    ("50\\%", "\\boxed{0.5}", RIGHT),
    ("50", "\\boxed{50\\%}", RIGHT),
    ("50\\%", "\\boxed{5}", WRONG),
    # Sets, tuples, intervals, matrices
    ("\\{1,2,3\\}", "\\boxed{\\{3, 2, 1\\}}", RIGHT),
    ("\\{1,2\\}", "\\boxed{\\{1,2,3\\}}", WRONG),
    ("(1,2)", "\\boxed{\\left(1, 2\\right)}", RIGHT),
    ("(1,2)", "\\boxed{(2,1)}", WRONG),
    ("[0,1)", "\\boxed{[0, 1)}", RIGHT),
    ("[0,1)", "\\boxed{(0,1)}", WRONG),
    ("(-\\infty,1)\\cup(3,\\infty)", "\\boxed{(-\\infty, 1) \\cup (3, \\infty)}", RIGHT),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\boxed{\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}}", RIGHT),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}}", WRONG),
    # Algebra
    ("2x+1", "\\boxed{1 + 2x}", RIGHT),
    ("(x+1)^2", "\\boxed{x^2+2x+1}", RIGHT),
    ("(x+1)^2", "\\boxed{x^2+1}", WRONG),
    ("5", "\\boxed{x = 5}", RIGHT),
    ("2\\sqrt{2}", "\\boxed{\\sqrt{8}}", RIGHT),
    ("1200", "\\boxed{1.2 \\times 10^3}", RIGHT),
    ("3+4i", "\\boxed{3-4i}", WRONG),
    # Near misses
    ("3", "\\boxed{-3}", WRONG),
    ("72", "\\boxed{7 2}", WRONG),
    ("72", "\\boxed{72 \\text{ or } 73}", WRONG),
    ("72", "\\boxed{72, 73}", WRONG),
    ("72", "\\boxed{seventy-one}", WRONG),
    # No answer at all, garbage, and 10,000 characters
    ("72", "", NO_ANSWER),
    ("72", "\n \n", NO_ANSWER),
    ("72", "I cannot say, sorry.", NO_ANSWER),
    ("72", "?!?! ... !!!", NO_ANSWER),
    ("72", "72 is it, or\\boxed{}", NO_ANSWER),
    ("72", "\\boxed{72", NO_ANSWER),
    ("72", "\\boxed{" * 1400, NO_ANSWER),
    ("72", "}" * 10_000, NO_ANSWER),
    ("72", "(" * 400, NO_ANSWER),
    ("72", "9" * 10_000, NO_ANSWER),
    ("72", "\\boxed{" + "9" * 10_000 + "}", NO_ANSWER),
    ("72", "x" * 9_990 + "\n#### 72", RIGHT),
    ("72", "answer is " * 1_000 + "72", RIGHT),
    ("72", "the answer : " + " " * 10_000, NO_ANSWER),
    ("72", "\ud800 \x00 \\boxed{\x00}", NO_ANSWER),
    ("72", "\\boxed{\ud800a}", WRONG),
    ("72", "\\boxed{1e999999999}", WRONG),
    ("72", "\\boxed{" + "9" * 480 + "}", WRONG),
    ("72", "\\boxed{\\frac{}{}}", WRONG),
    ("72", "\\boxed{__import__('os').system('true')}", WRONG),
]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("math") / "data.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"It doubles.\n#### {2 * i}"} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def task(data_path):
    task = MathTask(MathConfig(type="math", data={"path": data_path}, cpu_seconds=0.5, processes=1))
    yield task
    task.close()


def judge(task, *pairs, finished=True):
    prompts = [Prompt(str(i), text="?", truth=truths_of(right)) for i, (right, _) in enumerate(pairs)]
    return task.score(prompts, [Response(text, finished) for _, text in pairs])


def test_pairs_are_judged_rightly(task):
    started = time.monotonic()
    scores = judge(task, *((right, text) for right, text, _ in PAIRS))
    wrongly = [
        (right, text[:80], score)
        for (right, text, expected), score in zip(PAIRS, scores, strict=True)
        if score != expected
    ]
    assert wrongly == []
    assert time.monotonic() - started < 120


def test_notations_and_sentences_of_all_kinds(task):
    assert [pair for pair, score in zip(RIGHT_PAIRS, judge(task, *RIGHT_PAIRS), strict=True) if score.reward == 0] == []
    assert [pair for pair, score in zip(WRONG_PAIRS, judge(task, *WRONG_PAIRS), strict=True) if score.reward == 1] == []


def test_thinking_that_was_cut_is_no_answer(task):
    cut = [("36", "<think> perhaps \\boxed{36}? But"), ("36", "\\boxed{36}. <think> Let me")]
    assert judge(task, *cut, finished=False) == [NO_ANSWER, RIGHT]


def test_never_worse_than_a_string_match(task):
    # Each of these equals its answer as a string, in both forms, and math-verify alone refuses some.
    answers = ["72", "x \\le 2", "e^{i\\pi}", "12.", "Tuesday", "3:2", "1011_2", "\\text{no solution}", "f(x)=x"]
    pairs = [(a, form.replace("@", a)) for a in answers for form in ("#### @", "So $\\boxed{@}$.")]
    assert judge(task, *pairs) == [RIGHT] * len(pairs)


def test_any_of_several_right_answers(task):
    listed = '["\\\\frac{1}{2}", "0.7"]'  # JSON within a string
    assert judge(task, (listed, "\\boxed{0.5}"), (["1", "2"], "2"), (["1", "2"], "3")) == [RIGHT, RIGHT, WRONG]


def test_cut_response_counts_only_with_a_marked_answer(task):
    assert judge(task, ("24", "48 / 2 = 24"), ("24", "\\boxed{24} and"), finished=False) == [NO_ANSWER, RIGHT]


ENDLESS = "\\boxed{9^{9^{9^{9}}}}"


def test_endless_comparisons_are_wrong_and_spare_the_others(task, caplog):
    started = time.monotonic()
    scores = judge(
        task, ("1/2", "\\boxed{0.5}"), ("72", ENDLESS), ("72", "\\boxed{1000000!!}"), ("2/4", "\\boxed{1/2}")
    )
    assert scores == [RIGHT, NO_VERDICT, NO_VERDICT, RIGHT]
    assert "no verdict" in caplog.text and "more than 2 s of CPU time" in caplog.text  # 0.5 s, then 4 times as much
    assert time.monotonic() - started < 120


def test_a_slow_first_comparison_is_right_all_the_same(data_path):
    """Warming up takes more CPU time than a comparison may: its clock runs later."""
    task = MathTask(MathConfig(type="math", data={"path": data_path}, cpu_seconds=0.3, processes=1))
    assert judge(task, ("(x+1)^2", "\\boxed{x^2+2x+1}")) == [RIGHT]
    task.close()


def test_judged_from_threads(task):
    results = {}

    def work(name):
        results[name] = judge(task, ("(x+1)^2", "\\boxed{x^2+2x+1}"), (f"{name}/7", f"\\boxed{{{name + 1}/7.0}}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {name: [RIGHT, WRONG] for name in range(4)}


@pytest.mark.slow
def test_judged_inside_a_ray_actor(data_path):
    import ray

    start_ray("local", num_cpus=1, include_dashboard=False)
    try:

        @ray.remote
        class Judge:
            def judge(self, path, pairs):
                task = MathConfig(type="math", data={"path": path}, cpu_seconds=0.5).build()
                prompts = [Prompt(right, text="?", truth=[right]) for right, _ in pairs]
                return task.score(prompts, [Response(text, True) for _, text in pairs])

        pairs = [("1/2", "\\boxed{0.5}"), ("72", ENDLESS), ("2x", "\\boxed{x+x}")]
        assert ray.get(Judge.remote().judge.remote(data_path, pairs), timeout=120) == [RIGHT, NO_VERDICT, RIGHT]
    finally:
        ray.shutdown()


# Data


def test_prompts_come_with_the_final_answer(task):
    prompts = task.prompts("train", 10, seed=1)
    numbers = [int(prompt.messages[0]["content"].split()[2]) for prompt in prompts]
    assert [prompt.truth for prompt in prompts] == [[str(2 * n)] for n in numbers]
    assert task.prompts("train", 10, seed=1) == prompts


@pytest.mark.parametrize(
    "value, truths",
    [
        ("72", ["72"]),
        (72, ["72"]),
        (0.5, ["0.5"]),
        ("Half of 48 is 24. <<48+24=72>>\n#### 72", ["72"]),
        ("Thus $x = \\boxed{\\frac{1}{2}}$.", ["\\frac{1}{2}"]),
        (["1", "2"], ["1", "2"]),
        ('["[0,1]"]', ["[0,1]"]),
        ("[0, 1]", ["[0, 1]"]),
        (27.0, ["27"]),
        (12, ["12"]),
        (-3, ["-3"]),
        ([12, 13.5], ["12", "13.5"]),
        (10**30, ["1" + "0" * 30]),
        (10**400, ["1" + "0" * 400]),
        (1e22, ["1" + "0" * 22]),
        (Decimal("12.50"), ["12.50"]),
        (Decimal("3.00"), ["3"]),
        ("½", ["1/2"]),
        ("2½", ["2 1/2"]),
        ("1\u200b2", ["12"]),
        ("9 (apples)", ["9"]),
        ("(9, 10)", ["(9, 10)"]),
        ("concave up when $x<-1$ or $x>1$", ["concave up when $x<-1$ or $x>1$"]),
        ("First \\boxed{4}, then \\boxed{4} and \\boxed{9}.", ["4, 9"]),
    ],
)
def test_ground_truths(value, truths):
    assert truths_of(value) == truths


@pytest.mark.parametrize(
    "value, says",
    [
        ("", "empty"),
        (" ", "empty"),
        ([], "empty"),
        (True, "bool"),
        (float("nan"), "finite"),
        ({"a": 1}, "dict"),
        ('{"answer": 12}', "dict"),
        (float("-inf"), "finite"),
        (Decimal("NaN"), "finite"),
        ([None], "NoneType"),
        ("\\boxed{}", "no final answer"),
        ("a proof " * 100, "no final answer in a solution of 799 characters"),
        ('["1", ', "Expecting"),
        ("\u200b", "empty"),
        # open-r1 #503: a proof below the limit of an answer's length
        ("Since $n$ is even, so is $n^2$, and therefore no odd number can be its square root.", "no final answer"),
    ],
)
def test_ground_truths_that_are_none(value, says):
    with pytest.raises(ValueError, match=says):
        truths_of(value)


def test_a_row_without_answer_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a\\\\boxed{}"}\n')
    with pytest.raises(DataError, match="row 1: no final answer"):
        MathTask(MathConfig(type="math", data={"path": str(tmp_path / "a.jsonl")}))


# The parts


def test_marked_answers():
    assert marked_answer("no mark, 72") is None
    assert marked_answer("\\boxed{a{b}c} d}") == "a{b}c"
    assert marked_answer("\\boxed{}") == ""
    assert marked_answer("#### 3\n#### 4 \nso") == "4"


def test_last_line_of_a_finished_response():
    assert final_answer("a\n[0, 1)", finished=True) == "[0, 1)"
    assert final_answer("it is between 3 and $x^2$ here", finished=True) == "x^2"
    assert final_answer("so that makes 10-12 of them", finished=True) == "12"
    assert final_answer("so that makes -12 of them", finished=True) == "-12"


def test_strings_decide_what_they_can():
    assert plainly_equal("1,000", "1000.0") is True
    assert plainly_equal("2/6", "1/3") is True
    assert plainly_equal("72", "71") is False
    assert plainly_equal("0.333333", "0.3333333") is None
    assert plainly_equal("x+1", "1+x") is None


def test_importing_the_task_is_light():
    heavy = "torch vllm ray math_verify sympy datasets reasoning_gym pandas pyarrow numpy"
    code = "import sys, layersweep.rollout.tasks.math, layersweep.rollout.data.prompt_data; "
    code += f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
