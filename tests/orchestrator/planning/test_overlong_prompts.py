"""Prompts and responses against the model's window: over-long ones are refused, or left out and counted, before the
start."""

import json
from pathlib import Path

import pytest

from layersweep.orchestrator.commands.show_plan import show_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.rollout.data.window import OverlongPrompts, PromptUse, fit_prompts
from layersweep.rollout.types import Prompt
from tests.helpers.model_folders import make, plan


def long_data(tmp_path: Path, **settings) -> dict:
    """Thirty sums, and one question of 203 characters, which has as many tokens, in row 17."""
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(30)]
    rows.insert(16, {"question": "What is " + "1 + " * 48 + "1 ?", "answer": "49"})
    assert len(rows[16]["question"]) == 203
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(tmp_path / "long.jsonl"), "selection_share": 0.3, "final_share": 0.0} | settings


@pytest.mark.parametrize("run", [True, False])
def test_one_overlong_prompt_is_refused_before_the_start_with_its_row(tmp_path, run):
    """verl #771, simpleRL-reason #58. The window of 256 leaves 192 tokens beside a response of 64."""
    folder = make(tmp_path / "model")
    says = (
        r"1 of \d+ (train|selection) prompts are longer than the 192 tokens that the model's window of 256 leaves "
        r"beside a response of 64: row 17 \(203 tokens\); lower training\.max_response_tokens, or set overlong_prompts"
    )
    with pytest.raises(SpecError, match=says):
        plan(folder, run, task={"data": long_data(tmp_path)})
    found = plan(folder, run, task={"data": long_data(tmp_path)}, training={"max_response_tokens": 53})
    assert (found.data["task"].overlong, found.data["task"].rows) == (0, 31)


def test_overlong_prompts_are_dropped_and_counted(tmp_path):
    found = plan(make(tmp_path / "model"), task={"data": long_data(tmp_path, overlong_prompts="drop")})
    report = found.data["task"]
    assert (report.rows, report.overlong, report.train + report.selection + report.final) == (31, 1, 30)
    assert "1 over-long dropped" in str(report)


@pytest.mark.parametrize(
    "sections, says",
    [
        ({"training": {"max_response_tokens": 256}}, r"training\.max_response_tokens: 256 leaves no room .* of 256"),
        (
            {"evaluation": {"suites": [{"name": "sums", "prompts": 2, "max_response_tokens": 300}]}},
            r"evaluation\.suites\[0\]\.max_response_tokens: 300 leaves no room",
        ),
        ({"rollout": {"max_model_len": 64}}, r"training\.max_response_tokens: 64 leaves no room .* window of 64"),
        ({"rollout": {"max_model_len": 512}}, r"rollout\.max_model_len: 512 is more than the model's 256 positions"),
    ],
)
def test_responses_that_the_window_cannot_hold_are_refused_by_their_field(tmp_path, sections, says):
    with pytest.raises(SpecError, match=f"^{says}"):
        plan(make(tmp_path / "model"), **sections)


def test_a_plan_shows_what_is_left_out_of_training_and_of_each_suite(tmp_path, capsys):
    """The suite `all` scores the 31 rows that are trained on; of `short`, whose answers are shorter, all fit, as 203
    tokens and 53 are the window's 256."""
    data = long_data(tmp_path, overlong_prompts="drop", selection_share=0.0, decontaminate_ngram=None)
    held_out = {"type": "math", "data": data | {"selection_share": 1.0}}
    suites = [{"name": "all", "prompts": 2, "task": held_out},
              {"name": "short", "prompts": 2, "max_response_tokens": 53, "task": held_out}]  # fmt: skip
    found = plan(make(tmp_path / "model"), task={"data": data}, evaluation={"suites": suites})
    show_plan(found)
    said = capsys.readouterr().out
    assert "over-long  training: 1 of 31 train prompts dropped; suite all: 1 of 31 selection prompts dropped\n" in said


class Growing:
    """An endless task whose prompts have 9 to 12 tokens in turn."""

    drops_overlong = True

    def prompts(self, split, count, seed=0):
        return [Prompt(f"{seed}/{i}", text="x" * (9 + i % 4)) for i in range(count)]


def test_problems_of_an_endless_task_that_give_way_are_counted_for_each_suite():
    """10 tokens fit. Of four two do; two of the next four, which are the first two of those, make them four. Six were
    drawn. A suite of two needs no others."""
    uses = [PromptUse(f"evaluation.suites[{i}]", Growing(), "selection", count, 6, "training.max_response_tokens")
            for i, count in enumerate((4, 2))]  # fmt: skip
    fit = fit_prompts(uses, lambda prompts: (prompt.text for prompt in prompts), 16)
    assert fit.problems == []
    assert fit.overlong == [OverlongPrompts("evaluation.suites[0]", "selection", 2, replaced=True, of=6)]
