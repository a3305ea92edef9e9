"""Output of `layersweep data`: the prompts of a spec as the model sees them, and what the row's own answers get."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich.console import Console

from layersweep.orchestrator.planning.checks import CheckedSweep, check_sweep
from layersweep.orchestrator.report.format import wide_console
from layersweep.orchestrator.spec.data_sections import with_data
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import TinyModel
from layersweep.policies.wording import counted
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.window import PromptUse, prompt_uses
from layersweep.rollout.types import Prompt, Response

SHOWN_PROMPTS = 3
SHOWN_ROWS = 5
MOST_SCORED = 256
"""Right answers that are scored of one split at most."""
FORMS = {
    "as they stand": "{}",
    "in \\boxed{}": "\\boxed{{{}}}",
    "after ####": "#### {}",
    "in <answer>": "<answer>{}</answer>",
}
"""Forms in which a right answer may be what a reward expects, tried in order until all get 1."""


def show_data(spec: SweepSpec) -> list[str]:
    """Print, for training and each suite: every bad row, prompts by split, token lengths, some prompts, and rewards of
    right answers. Return the problems for which a run would refuse the data.

    Raises:
        SpecError: for another reason the spec cannot be run.
    """
    refused: list[str] = []

    def skipping(data: DataConfig, field: str) -> DataConfig:
        refused.extend([field] if data.bad_rows == "refuse" else [])
        return data.model_copy(update={"bad_rows": "skip"})

    checked = check_sweep(with_data(spec, skipping), fetch=False, fetch_data=True)
    counts = {f"{section}{'' if section == 'task' else '.task'}.data": report.bad
              for section, report in checked.plan.data.items()}  # fmt: skip
    _show_checked(checked)
    fix = "fix them, or leave them out with bad_rows: skip"
    return [f"{field}: {counted(counts[field], 'bad rows')}, listed above; {fix}"
            for field in refused if counts.get(field)]  # fmt: skip


def _show_checked(checked: CheckedSweep) -> None:
    spec, console = checked.plan.spec, wide_console()
    suites = [(suite, checked.tasks.get(f"evaluation.suites[{i}]") if suite.task else checked.tasks.get("task"))
              for i, suite in enumerate(spec.evaluation.suites)]  # fmt: skip
    training = spec.training
    uses = prompt_uses(checked.tasks.get("task"), suites, training.prompts_per_step, training.max_response_tokens)
    names = {"task": f"training: {spec.task.type}"}
    for i, suite in enumerate(spec.evaluation.suites):
        names[f"evaluation.suites[{i}]"] = f"suite {suite.name}: {(suite.task or spec.task).type}"
    seen: set[tuple[int, str]] = set()
    for use in uses:
        if use.task is None or (id(use.task), use.split) in seen:
            continue
        first = not any(task == id(use.task) for task, _ in seen)
        seen.add((id(use.task), use.split))
        if first:
            console.print(names[use.section])
            if report := checked.plan.data.get(use.section):
                _fact(console, "rows", str(report))
                _show_bad_rows(console, use.task.data, report.bad)
        if getattr(use.task, "multi_turn", False):
            if first:
                _show_starts(console, checked, use)
            continue
        _show_split(console, checked, use, shown=SHOWN_PROMPTS if first else 0)
    for task in checked.tasks.values():
        for notice in task.notices() if hasattr(task, "notices") else ():
            console.print(notice, soft_wrap=True)
        if hasattr(task, "close"):
            task.close()
    for unchecked in checked.plan.unchecked:
        _fact(console, "not here", unchecked)


def _show_bad_rows(console: Console, data: PromptData, count: int) -> None:
    if count:
        _fact(console, "bad rows", f"{count:,}:")
        for row in data.bad_rows():
            console.print(f"    {row}", markup=False, soft_wrap=True)


def _show_split(console: Console, checked: CheckedSweep, use: PromptUse, shown: int) -> None:
    data = getattr(use.task, "data", None)
    prompts = data.all_prompts(use.split) if data else use.task.prompts(use.split, use.count)
    if not prompts:
        _fact(console, use.split, "no prompts")
        return
    some = "" if data else ", generated"
    tokens, as_text = _encoded(checked, prompts)
    exact = checked.encoder or isinstance(checked.plan.spec.model, TinyModel)
    unit = "tokens" if exact else "characters (no tokenizer is here)"
    longest = max(range(len(prompts)), key=tokens.__getitem__)
    row_of: Callable[[Prompt], str] = data.row_of if data else lambda prompt: f"prompt {prompt.id}"
    _fact(
        console, use.split,
        f"{counted(len(prompts), 'prompts')}{some}; {unit} {min(tokens):,} to {max(tokens):,}, "
        f"median {median(tokens):,g}, the longest is {row_of(prompts[longest])}",
    )  # fmt: skip
    _show_right_answers(console, use.task, prompts[:MOST_SCORED], row_of)
    for number in range(min(shown, len(prompts))):
        console.print(f"    -- {row_of(prompts[number])}, {tokens[number]:,} {unit} --")
        _show_text(console, as_text(number))


def _show_starts(console: Console, checked: CheckedSweep, use: PromptUse) -> None:
    """Show the first prompts of some episodes; the others follow from what the model does."""
    from layersweep.rollout.environments.episodes import Episode, next_prompt
    from layersweep.rollout.environments.process_pool import Call, EnvironmentLost

    _fact(console, "prompts", "as the episodes go; the first ones are:")
    for start in use.task.prompts(use.split, min(SHOWN_PROMPTS, use.count)):
        process = use.task.processes.of(start.seed)
        [state] = process.submit([Call(process.number(), start.seed, [], "")]).result()
        if isinstance(state, EnvironmentLost):
            raise SpecError([f"{use.section}: start state {start.id}: {state.reason}"])
        prompt = next_prompt(use.task.config, Episode(start, 0, 0, state=state))
        tokens, as_text = _encoded(checked, [prompt])
        console.print(f"    -- start state {start.seed}, {tokens[0]:,} tokens --")
        _show_text(console, as_text(0))


def _show_text(console: Console, text: str) -> None:
    for line in text.split("\n"):
        console.print(f"    | {line}", soft_wrap=True)


def _encoded(checked: CheckedSweep, prompts: Sequence[Prompt]) -> tuple[list[int], Callable[[int], str]]:
    """Return the number of tokens of each prompt, and what shows a prompt as the model sees it."""
    if (encoder := checked.encoder) is None:
        texts = [prompt.text or "\n".join(f"{m['role']}: {m['content']}" for m in prompt.messages or ()) for prompt in
                 prompts]  # fmt: skip
        return [len(text) for text in texts], texts.__getitem__
    ids = list(encoder.encode_all(prompts))
    return [len(row) for row in ids], lambda i: encoder.tokenizer.decode(ids[i], skip_special_tokens=False)


def _show_right_answers(
    console: Console, task: Any, prompts: Sequence[Prompt], row_of: Callable[[Prompt], str]
) -> None:
    """Say what the rows' own answers get: 1, unless data and reward do not fit together."""
    if not hasattr(task, "right_response"):
        return
    responses = [(prompt, task.right_response(prompt)) for prompt in prompts]
    known = [(prompt, response.text) for prompt, response in responses if response is not None]
    if not known:
        return _fact(console, "right answers", "none of the rows brings a program, so none was tried")
    if not any(answer for _, answer in known):
        return _fact(console, "right answers", "none of the rows has one; data.columns.answer names its column")
    prompts, answers = zip(*known, strict=True)
    best: tuple[float, str, list[Any]] | None = None
    for name, form in FORMS.items():
        scores = task.score(prompts, [Response(form.format(answer), True) for answer in answers])
        mean = sum(score.reward for score in scores) / len(scores)
        if best is None or mean > best[0]:
            best = (mean, name, scores)
        if all(score.reward >= 1 for score in scores):
            break
    assert best is not None
    _, name, scores = best
    right = sum(score.reward >= 1 for score in scores)
    below = [f"{row_of(prompt)} ({score.reward:g}{'' if score.judged else ', failed'})"
             for prompt, score in zip(prompts, scores, strict=True) if score.reward < 1]  # fmt: skip
    more = f" and {len(below) - SHOWN_ROWS} more" if len(below) > SHOWN_ROWS else ""
    _fact(console, "right answers", f"{right} of {len(scores)} get reward 1 {name}"
          + (f"; below it: {', '.join(below[:SHOWN_ROWS])}{more}" if below else ""))  # fmt: skip


def _fact(console: Console, name: str, fact: str) -> None:
    console.print(f"{name:>14}  {fact}")
