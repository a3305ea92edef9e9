"""A task as a class of the user's own: its prompts and scores, and what cannot be one."""

import pytest

from layersweep.rollout.tasks.custom import CustomTaskConfig
from layersweep.rollout.types import Prompt, Response, Score

TASK = """
from layersweep.rollout.types import Prompt, Score

class Doubles:
    alphabet = "0123456789*="

    def __init__(self, first=0):
        self.first = first

    def prompts(self, split, count, seed=0):
        start = self.first + {"train": 0, "selection": 1000, "final": 2000}[split] + (seed if split == "train" else 0)
        return [Prompt(id=str(n), text=f"2*{n}=", truth=2 * n) for n in range(start, start + count)]

    def score(self, prompts, responses):
        if responses[0].text == "boom":
            raise RuntimeError("boom")
        return [Score(float(r.text == str(p.truth)), r.finished and r.text.isdecimal(), numbers={"length": len(r.text)})
                for p, r in zip(prompts, responses, strict=True)]

    def demonstrations(self, count, seed):
        return [(f"2*{n}=", str(2 * n)) for n in range(count)]

class Plain:
    def prompts(self, split, count, seed=0):
        return [{"id": f"{split}{n}", "messages": [{"role": "user", "content": "?"}], "info": {"n": n}}
                for n in range(count)]
    def score(self, prompts, responses):
        return [{"score": prompts[0].info["n"] / 4, "words": 2}]
"""


def build(folder, source: str = TASK, name: str = "Doubles", **settings):
    (folder / "mine.py").write_text(source)
    return CustomTaskConfig(path=f"{folder}/mine.py:{name}", settings=settings, processes=1, seconds=5).build()


def test_prompts_and_scores_are_the_classs(tmp_path):
    task = build(tmp_path, first=10)
    task.check()
    assert task.prompts("train", 2, seed=3) == [Prompt("13", "2*13=", truth=26), Prompt("14", "2*14=", truth=28)]
    prompts = task.prompts("selection", 4)
    found = task.score(prompts, [Response(text, True) for text in ("2020", "7", "x", "boom")])
    assert found == [
        Score(1.0, True, numbers={"length": 4}), Score(0.0, True, numbers={"length": 1}),
        Score(0.0, False, numbers={"length": 1}), Score(0.0, False, judged=False),
    ]  # fmt: skip
    [notice] = task.notices()
    assert "mine.py:Doubles.score failed on 1 of 4 responses" in notice and notice.endswith("RuntimeError: boom")
    assert task.alphabet == "0123456789*=" and task.demonstrations(2, 0) == [("2*0=", "0"), ("2*1=", "2")]
    task.close()


def test_prompts_and_scores_may_be_plain_data(tmp_path):
    task = build(tmp_path, name="Plain")
    task.check()
    prompts = task.prompts("final", 2)
    assert prompts[1] == Prompt("final1", messages=({"role": "user", "content": "?"},), info={"n": 1})
    assert task.score(prompts, [Response("", True)] * 2)[1] == Score(0.25, True, numbers={"words": 2.0})
    with pytest.raises(
        ValueError, match="Plain.alphabet fails: ValueError: there is no `alphabet`, which a tiny model needs"
    ):
        task.alphabet  # noqa: B018
    task.close()


ALL = "class T:\n    def __init__(self): pass\n"
PROMPTS = (
    "    def prompts(self, split, count, seed=0): return [dict(id=f'{split}{n}', text='q') for n in range(count)]\n"
)
SCORE = "    def score(self, prompts, responses): return [1.0]\n"
REFUSED = {
    "no class": ("T = 1", "'int' object is not callable"),
    "fails to begin": ("class T:\n    def __init__(self):\n        raise OSError('no disk')",
                       "T fails: OSError: no disk (mine.py, line 3)"),
    "a set": (ALL + SCORE + PROMPTS.replace("text='q'", "text='q', truth={1}"),
              "T.prompts fails: what was given cannot be sent: TypeError: Object of type set"),
    "a number as text": (ALL + SCORE + PROMPTS.replace("text='q'", "text=n"), "is not text, or empty: 0"),
    "empty text": (ALL + SCORE + PROMPTS.replace("text='q'", "text=''"), "is not text, or empty: ''"),
    "half an emoji": (ALL + SCORE + PROMPTS.replace("'q'", "chr(0xD83D)"), "UnicodeEncodeError"),
    "text as messages": (ALL + SCORE + PROMPTS.replace("text='q'", "messages='q'"),
                         "has a message without role and content: 'q'"),
    "no score": (ALL + PROMPTS, "T has no method score"),
    "no prompts": (ALL + SCORE, "T has no method prompts"),
    "settings that it lacks": ("class T:\n    def __init__(self, x): pass\n", "missing 1 required positional argument"),
    "fails in prompts": (ALL + "    def prompts(self, split, count, seed=0): return 1 / 0\n" + SCORE,
                         "T.prompts fails: ZeroDivisionError"),
    "fails in score": (ALL + PROMPTS + "    def score(self, prompts, responses): return responses[0].text[0]\n",
                       "T.score fails on an empty response: IndexError"),
    "no list": (ALL + PROMPTS + "    def score(self, prompts, responses): return 1.0\n",
                "score gave float '1.0' for one response"),
    "random prompts": ("import random\n" + ALL + SCORE + PROMPTS.replace("'q'", "str(random.random())"),
                       "gives other prompts when it is asked again"),
    "shared prompts": (ALL + SCORE + PROMPTS.replace("{split}", ""), "gives '0' in train and in selection"),
    "no text": (ALL + SCORE + PROMPTS.replace(", text='q'", ""), "has not exactly one of text and messages"),
    "unknown field": (ALL + SCORE + PROMPTS.replace("text=", "txt="), "unexpected keyword argument 'txt'"),
    "number as id": (ALL + SCORE + PROMPTS.replace("f'{split}{n}'", "n"), "the id of a prompt is text, not 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_is_tried_before_anything_starts(tmp_path, name):
    source, says = REFUSED[name]
    with pytest.raises(ValueError) as error:
        build(tmp_path, source, "T").check()
    assert says in str(error.value), str(error.value)


def test_a_number_of_prompts_that_was_not_asked_for(tmp_path):
    task = build(tmp_path, ALL + SCORE + PROMPTS.replace("range(count)", "range(4)"), "T")
    with pytest.raises(ValueError, match="gave 4 train prompts, 7 were asked for"):
        task.prompts("train", 7)
    task = build(tmp_path, ALL + SCORE + PROMPTS.replace("{n}", ""), "T")
    with pytest.raises(ValueError, match="gave two train prompts with the id 'train'"):
        task.prompts("train", 2)
    task.close()
