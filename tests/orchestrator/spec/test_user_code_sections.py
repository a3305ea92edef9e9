"""Code of the user's own in a spec: where it is, what it is, and that it may move but not change."""

import pytest
import yaml

from layersweep.cli import DEMO
from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.orchestrator.spec.paths import with_absolute_paths
from layersweep.orchestrator.spec.user_code_sections import code_sections, code_texts, with_moved_code

REWARD = "import helper_of_rewards\ndef score(solution_str, ground_truth):\n    return float(len(solution_str))\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "rewards.py").write_text(REWARD)
    (folder / "helper_of_rewards.py").write_text("")
    (folder / "rows.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(90)))
    monkeypatch.chdir(folder)
    return folder


def spec(reward="rewards.py:score", **changes):
    data = {"path": "rows.jsonl", "prompt_format": "plain", "selection_share": 0.3}
    task = {"type": "prompts", "data": data, "reward": reward}
    suite = {"name": "own", "prompts": 4, "task": {"type": "environment", "path": "world.World"}}
    sections = yaml.safe_load(open(DEMO)) | {
        "task": task,
        "evaluation": {"suites": [suite, {"name": "b", "prompts": 4}]},
    }
    return parse_spec(sections | changes)


ALONE = {
    "evaluation": {"suites": [{"name": "b", "prompts": 4}]},
    "training": {"prompts_per_step": 8, "max_response_tokens": 7},
}


def test_every_section_is_found_with_its_field(here):
    found = {field: section.path for field, section in code_sections(spec(["rewards.py:score", "other.f"]))}
    assert found == {
        "task.reward[0]": "rewards.py:score",
        "task.reward[1]": "other.f",
        "evaluation.suites[0].task": "world.World",
    }


def test_files_become_absolute_and_modules_stay(here):
    made = with_absolute_paths(spec(["rewards.py:score", "other.f"]))
    paths = [section.path for _, section in code_sections(made)]
    assert paths == [f"{here}/rewards.py:score", "other.f", "world.World"]
    assert with_absolute_paths(made) == made
    taken = with_absolute_paths(spec(), taken_along=str(here))
    assert taken.task.reward[0].path == "rewards.py:score"


def test_the_texts_belong_to_the_plan(here):
    plan = make_plan(spec(**ALONE), fetch=False)
    assert plan.code == {"helper_of_rewards.py": "", "rewards.py": REWARD}
    with pytest.raises(SpecError, match=r"task\.reward\[0\]\.path: .*nowhere\.py: no such file"):
        make_plan(spec("nowhere.py:score", **ALONE), fetch=False)
    with pytest.raises(SpecError, match=r"task\.reward\[0\]\.path: nowhere.f: no module nowhere in .*one"):
        make_plan(spec("nowhere.f", **ALONE), fetch=False)


def test_two_files_of_one_name_are_told_apart(here):
    (here / "sub").mkdir()
    (here / "sub" / "rewards.py").write_text("other = 1")
    both = spec(["rewards.py:score", "sub/rewards.py:other"])
    texts = code_texts(both.model_copy(update={"evaluation": spec(**ALONE).evaluation}))
    assert texts["rewards.py"] == REWARD and texts["rewards.py of task.reward[1]"] == "other = 1"


def manifest(here, plan):
    return SweepManifest("", plan.spec.model_dump(mode="json"), {}, plan.fingerprints, plan.code)


def test_a_changed_reward_is_another_experiment(here):
    begun = manifest(here, make_plan(spec(**ALONE), fetch=False))
    (here / "rewards.py").write_text(REWARD.replace("float(", "2 * float("))
    (here / "helper_of_rewards.py").write_text("x = 1")
    with pytest.raises(SpecError) as error:
        begun.asks_no_more_than_done(make_plan(spec(**ALONE), fetch=False))
    lines = {
        "helper_of_rewards.py": (1, "None", "'x = 1'"),
        "rewards.py": (3, "'    return float(len(solution_str))'", "'    return 2 * float(len(solution_str))'"),
    }
    assert error.value.problems == [
        f"code: {name} has changed since the sweep began, first in line {line}: it was {was}, is {now}; restore it, or "
        "choose another name"
        for name, (line, was, now) in lines.items()
    ]


def test_another_function_weight_or_setting_is_another_experiment(here):
    begun = manifest(here, make_plan(spec(**ALONE), fetch=False))
    (here / "rewards.py").write_text(REWARD + "def other(solution_str): return 1.0\n")
    for reward in ("rewards.py:other", {"path": "rewards.py:score", "weight": 2}):
        with pytest.raises(SpecError, match="task.reward: the sweep began with"):
            begun.asks_no_more_than_done(make_plan(spec(reward, **ALONE), fetch=False))


def test_code_that_moved_is_the_same(here, monkeypatch):
    plan = make_plan(spec(**ALONE), fetch=False)
    begun = manifest(here, plan)
    begun.finished = True
    assert begun.asks_no_more_than_done(plan)
    other = here.parent / "other"
    other.mkdir()
    for name in ("rewards.py", "helper_of_rewards.py"):
        (other / name).write_text((here / name).read_text())
    (here / "rewards.py").unlink()
    moved = make_plan(spec(f"{other}/rewards.py:score", **ALONE), fetch=False)
    assert begun.asks_no_more_than_done(moved)


def test_only_a_files_folder_may_differ():
    old = {"task": {"reward": [{"path": "/a/r.py:f"}, {"path": "/a/r.py:g"}], "data": {"path": "/a/x.jsonl"}}}
    new = {"task": {"reward": [{"path": "/b/r.py:f"}, {"path": "/b/s.py:g"}], "data": {"path": "/b/x.jsonl"}}}
    assert with_moved_code(old, new) == {
        "task": {"reward": [{"path": "/b/r.py:f"}, {"path": "/a/r.py:g"}], "data": {"path": "/a/x.jsonl"}}
    }
