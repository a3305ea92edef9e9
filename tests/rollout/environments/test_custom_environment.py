"""An environment as a class of the user's own: played as the built-in ones are, and what cannot be one."""

import asyncio

import pytest

from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.custom import CustomEnvironmentConfig
from layersweep.rollout.environments.process_pool import Call
from tests.helpers.scripted import Model, played

COUNTER = """
class Counter:
    \"\"\"From the seed up to a goal; an episode is won by reaching it.\"\"\"

    def __init__(self, goal):
        self.goal = goal
        self.actions = ["add", "wait"]

    def reset(self, seed):
        self.value = seed % 2
        return f"at {self.value}"

    def step(self, text):
        invalid = text not in self.actions
        self.value += text == "add"
        done = self.value == self.goal
        return f"at {self.value}", 0.5 * (text == "add"), done, False, {"invalid": True} if invalid else {}
"""


def config(folder, source=COUNTER, name="Counter", **settings) -> CustomEnvironmentConfig:
    (folder / "world.py").write_text(source)
    return CustomEnvironmentConfig(path=f"{folder}/world.py:{name}", settings=settings, processes=1)


def play(task, seed: int, *actions: str):
    """The state after each action."""
    process = task.processes.of(seed)
    number = process.number()
    states, anchor = [], ""
    for count in range(len(actions) + 1):
        [state] = asyncio.run(process.run([Call(number, seed, actions[:count], anchor)]))
        anchor = state.anchor
        states.append(state)
    return states


def test_an_episode_of_ones_own_class(tmp_path):
    """Success is the sum of the rewards where the class says nothing of it."""
    task = config(tmp_path, goal=3).build()
    task.check()
    states = play(task, 1, "add", "jump", "add")
    assert [state.observation for state in states] == ["at 1", "at 2", "at 2", "at 3"]
    assert [state.anchor for state in states] == ["at 1", "at 2", "at 2", "at 3"]
    assert [state.reward for state in states] == [0, 0.5, 0, 0.5]
    assert [state.success for state in states] == [0, 0.5, 0.5, 1.0]
    assert [state.invalid for state in states] == [False, False, True, False]
    assert [state.terminated for state in states] == [False, False, False, True]
    assert states[0].actions == ["add", "wait"] and states[0].category is None
    again = play(task, 2, "add")
    assert [state.success for state in again] == [0, 0.5]  # nothing is left of the episode before
    task.close()


def test_gymnasiums_reset_and_what_a_class_says_itself(tmp_path):
    source = COUNTER.replace('return f"at {self.value}"\n\n', 'return f"at {self.value}", {}\n\n').replace(
        'else {}', 'else {"success": 0.25}'
    ) + '    category = "small"\n    anchor = "always the same"\n'  # fmt: skip
    task = config(tmp_path, source, goal=2).build()
    task.check()
    states = play(task, 0, "add", "add")
    assert [state.success for state in states] == [0, 0.25, 0.25]
    assert {(state.category, state.anchor) for state in states} == {("small", "always the same")}
    task.close()


def test_episodes_with_a_model(tmp_path):
    """Both samples of a start state at 1 begin alike; who adds twice gets to the goal, who jumps loses 0.1."""
    task = config(tmp_path, goal=3).build()
    turns = {"at 1": "add", "at 2": "jump", "at 3": "never asked", "at 0": "wait"}
    batch = played(task, [InitialState("odd", 1), InitialState("even", 2)], 2, Model(lambda prompt, _: turns[prompt]))
    rows = batch.experience()
    assert [(e.start.id, e.success, e.terminated) for e in batch.episodes] == [
        ("odd", 0.5, False), ("odd", 0.5, False), ("even", 0.0, False), ("even", 0.0, False)
    ]  # fmt: skip
    assert rows.reward[:4].tolist() == pytest.approx([0.5, -0.1, -0.1, -0.1])
    assert rows.anchor[:3] == ["at 1", "at 2", "at 2"] and rows.metrics["lost_episodes"] == 0
    task.close()


REFUSED = {
    "no step": ("class Counter:\n    def __init__(self, goal): pass\n    def reset(self, seed): ...", "no method step"),
    "no reset": ("class Counter:\n    def __init__(self, goal): pass", "has no method reset"),
    "other settings": (COUNTER.replace("self, goal", "self, target"), "unexpected keyword argument 'goal'"),
    "fails to start": (COUNTER.replace("self.value = seed % 2", "self.value = seed // 0"),
                       "ZeroDivisionError: integer division or modulo by zero (world.py, line 10)"),
    "no text": (COUNTER.replace('return f"at {self.value}"\n', "return self.value\n"),
                "reset gave an observation that is no text but int"),
    "random": (COUNTER.replace("seed % 2", "id(object()) + __import__('random').randrange(10**9)"),
               "gives another observation for the same seed"),
    "fails in a step": (COUNTER.replace("invalid = ", "invalid = text[0] == '' or "),
                        "Counter.step fails on an empty action: IndexError"),
    "ends itself": (COUNTER.replace("invalid = ", "invalid = exit('enough') or "), "SystemExit: enough"),
    "no number": (COUNTER.replace("0.5 *", "float('nan') *"), "ValueError: the reward is nan; a reward is finite"),
    "a number as text": (COUNTER.replace("0.5 *", "'x' *"), "TypeError: the reward is no number but str ''"),
    "no info": (COUNTER.replace('{"invalid": True} if', "None if"), "step gave an info that is no dict but NoneType"),
    "half an emoji": (COUNTER.replace('return f"at {self.value}"\n', 'return chr(0xD83D)\n'), "UnicodeEncodeError"),
    "a success of 5": (COUNTER.replace('{"invalid": True}', '{"success": 5}'),
                       'ValueError: info["success"] is 5.0; it lies in [0, 1]'),
    "a list of other things": (COUNTER.replace('"wait"]', '"wait"]\n        self.tools = [{1}]'),
                               "what was given cannot be sent: TypeError"),
    "four values": (COUNTER.replace(", False, {", ", {"), "a tuple of observation, reward, terminated, "),
    "no file": ("", "has no Counter"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_is_tried_before_anything_starts(tmp_path, name):
    source, says = REFUSED[name]
    with pytest.raises(ValueError) as error:
        config(tmp_path, source, goal=3).build().check()
    assert says in str(error.value) and "(custom.py" not in str(error.value), str(error.value)
