"""The answers that tasks read, which a majority vote counts: texts that are equal where answers are."""

import json

from layersweep.rollout.tasks.demo.sort_digits import SortDigitsConfig
from layersweep.rollout.tasks.math import MathConfig
from layersweep.rollout.tasks.reasoning_gym import ReasoningGymConfig
from layersweep.rollout.types import Prompt, Response


def answers(task, prompt, *texts, finished=True):
    return [score.answer for score in task.score([prompt] * len(texts), [Response(text, finished) for text in texts])]


def test_mathematics_answers_in_one_notation(tmp_path):
    """As canonical notation has them, right or wrong; prose before the answer is no part of it."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "1/2 + 1/4?", "answer": "3/4"}))
    task = MathConfig(data={"path": str(tmp_path / "a.jsonl"), "selection_share": 0, "final_share": 0}).build()
    [prompt] = task.prompts("train", 1)
    texts = (
        r"So \boxed{\frac{3}{4}}",
        r"The answer is $\dfrac34$.",
        r"I think \boxed{ 12 }",
        "#### 12",
        "no idea at all",
    )
    right, same, wrong, again, none = answers(task, prompt, *texts)
    assert right == same and wrong == again == "12" != right and none is None
    task.close()


def test_the_demo_s_answers():
    task, prompt = SortDigitsConfig(digits=4).build(), Prompt("4831", text="4831=", truth="1348")
    assert answers(task, prompt, "1348", "1384", "134", "13x8") == ["1348", "1384", None, None]
    assert answers(task, prompt, "1348", finished=False) == [None]


def test_reasoning_gym_answers_without_their_marks():
    task = ReasoningGymConfig(dataset="chain_sum").build()
    [prompt] = task.prompts("train", 1)
    assert answers(task, prompt, "so <answer> 12 </answer>", "<answer>13</answer>", "12") == ["12", "13", None]
    task.close()
