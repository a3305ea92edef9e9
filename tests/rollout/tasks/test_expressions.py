"""The embedded code task: prompts, demonstrations, and expressions that really run."""

import re

import pytest

from layersweep.rollout.tasks.demo.expressions import Expressions, ExpressionsConfig
from layersweep.rollout.types import Response


@pytest.fixture(scope="module")
def task():
    return ExpressionsConfig().build()


def prompt_of(task, text):
    """The prompt with this text, wherever it is."""
    for split, size in (("train", 5000), ("selection", 1000), ("final", 600)):
        for prompt in task.prompts(split, size):
            if prompt.text == text:
                return prompt
    raise LookupError(text)


def judged(task, prompt, texts, finished=True):
    found = task.score([prompt] * len(texts), [Response(text, finished) for text in texts])
    return [(score.reward, score.format_ok) for score in found]


def test_truth_by_hand(task):
    # Add 3, times 2, subtract 1, for x in 0, 1, 2, 7, 100.
    assert prompt_of(task, "a3m2s1:").truth == [5, 7, 9, 19, 205]
    assert prompt_of(task, "s4m3a2:").truth == [-10, -7, -4, 11, 290]


def test_expressions_run(task):
    answers = {
        "(x+3)*2-1": (1, True),
        "2*x+5": (1, True),
        "x+x+5": (1, True),
        "((x)+(3))*(2)-1": (1, True),
        "x+3*2-1": (0, True),  # without its parentheses: x + 5
        "205": (0, True),
        "(x+3*2-1": (0, False),
        "x+": (0, False),
        "012": (0, False),
        "": (0, False),
        "x(3)": (0, True),
        "a": (0, False),
        "x+3\n": (0, False),
        "(x+3)*2-1 ": (0, False),
        "9**9**9**9": (0, True),
        "(" * 300 + "x" + ")" * 300: (0, False),
    }
    prompt = prompt_of(task, "a3m2s1:")
    assert judged(task, prompt, list(answers)) == list(answers.values())
    # What was cut at the token limit counts for nothing, even if the same text was right before.
    assert judged(task, prompt, ["(x+3)*2-1"], finished=False) == [(0, False)]


def test_the_same_expression_runs_once_per_prompt(task, monkeypatch):
    runs = []
    judge = task._sandbox.judge
    monkeypatch.setattr(task._sandbox, "judge", lambda programs: runs.append(len(programs)) or judge(programs))
    one, other = task.prompts("train", 2, seed=5)
    responses = [Response(text, True) for text in ("x+1", "x+1", "x+1", "x+2")]
    first = task.score([one, one, other, other], responses)
    assert task.score([one, one, other, other], responses) == first
    assert runs == [3, 0]


def test_every_correct_demonstration_is_right_and_every_other_one_wrong(task):
    shown = task.demonstrations(2000, seed=0)
    assert shown == task.demonstrations(2000, seed=0) != task.demonstrations(2000, seed=1)
    complete = [(prompt, answer) for prompt, answer in shown if "(" in answer]
    # 2000 draws at 0.4 have a standard deviation of 22.
    assert abs(len(complete) - 800) < 110
    prompts = {prompt.text: prompt for prompt in task.prompts("train", 5607)}
    few = shown[:60]
    scores = task.score([prompts[prompt] for prompt, _ in few], [Response(answer, True) for _, answer in few])
    assert [score.reward for score in scores] == [float("(" in answer) for _, answer in few]
    assert all(score.format_ok for score in scores)


def test_alphabet_covers_prompts_and_demonstrations(task):
    assert len(set(Expressions.alphabet)) == len(Expressions.alphabet) == 20
    texts = "".join(prompt + answer for prompt, answer in task.demonstrations(500, seed=3))
    texts += "".join(prompt.text for prompt in task.prompts("final", 700))
    assert set(texts) <= set(Expressions.alphabet)


def test_splits_are_disjoint_and_large_enough(task):
    # 26 steps (9 to add, 8 to multiply by, 9 to subtract); a product must follow a sum or difference.
    # Without need: no product after a sum, so 8^3 + 8^2 18 + 8 18^2 + 18^3 of 26^3 chains.
    sizes = {"train": 5607, "selection": 1144, "final": 737}
    assert sum(sizes.values()) == 26**3 - (8**3 + 8**2 * 18 + 8 * 18**2 + 18**3) == 7488
    splits = {split: {prompt.id for prompt in task.prompts(split, size)} for split, size in sizes.items()}
    assert {split: len(ids) for split, ids in splits.items()} == sizes
    assert sizes["selection"] >= 512 and sizes["final"] >= 256
    assert len(set.union(*splits.values())) == 7488
    assert {prompt[:-1] for prompt, _ in task.demonstrations(3000, seed=0)} <= splits["train"]
    with pytest.raises(ValueError, match="final has 737 prompts, 738 were asked for"):
        task.prompts("final", 738)


def test_batches(task):
    ids = [prompt.id for prompt in task.prompts("train", 64, seed=1)]
    assert ids == [prompt.id for prompt in task.prompts("train", 64, seed=1)]
    assert ids != [prompt.id for prompt in task.prompts("train", 64, seed=2)]
    assert len(set(ids)) == 64
    assert all(re.fullmatch(r"([as][1-9]|m[2-9]){3}", chain) for chain in ids)
