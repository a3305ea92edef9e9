"""Prompts and responses against the model's window, counted in tokens before anything starts."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from layersweep.rollout.config import SuiteConfig
from layersweep.rollout.types import Prompt, Split, stable_seed

SHOWN = 5
"""Number of over-long prompts that a message names."""
MOST_DRAWS = 20
"""Draws of prompts after which a task counts as one whose prompts do not fit."""

Encode = Callable[[Sequence[Prompt]], Iterable[Sequence[int]]]


@dataclass(frozen=True)
class PromptUse:
    """The prompts of one split, as a section of the spec has them answered."""

    section: str
    """`task` or `evaluation.suites[0]`."""
    task: Any
    split: Split
    count: int
    """Prompts at a time; 0 is no use at all."""
    response_tokens: int
    limit_field: str
    """The field that `response_tokens` comes from."""
    count_field: str = ""
    """The field that `count` comes from."""


def prompt_uses(task: Any, suites: Sequence[tuple[SuiteConfig, Any]], prompts_per_step: int,
                response_tokens: int) -> list[PromptUse]:  # fmt: skip
    """Return all uses of a sweep: training, then each suite's splits.

    Args:
        task: what is trained on.
        suites: each suite's section and task.
        prompts_per_step: of training.
        response_tokens: `training.max_response_tokens`, which suites without their own limit have too.
    """
    training = "training.max_response_tokens"
    uses = [PromptUse("task", task, "train", prompts_per_step, response_tokens, training, "training.prompts_per_step")]
    for i, (suite, suite_task) in enumerate(suites):
        section = f"evaluation.suites[{i}]"
        own = suite.max_response_tokens
        limit = (own, f"{section}.max_response_tokens") if own else (response_tokens, training)
        counts: dict[Literal["selection", "final"], tuple[int, str]] = {
            "selection": (suite.prompts, "prompts"), "final": (suite.final_prompts, "final_prompts"),
        }  # fmt: skip
        uses += [PromptUse(section, suite_task, split, count, *limit, f"{section}.{field}")
                 for split, (count, field) in counts.items() if count]  # fmt: skip
    return uses


@dataclass(frozen=True)
class OverlongPrompts:
    """Prompts of one use that leave no room for a response in the window."""

    section: str
    split: Split
    count: int
    replaced: bool
    """Whether further prompts were drawn in their place; those of a data set are dropped."""
    of: int
    """Prompts that were held against the window."""


@dataclass
class Fit:
    """Result of holding prompts against the window."""

    problems: list[str] = field(default_factory=list)
    overlong: list[OverlongPrompts] = field(default_factory=list)
    """Prompts that were dropped or replaced, of uses that have some. Of endless tasks those of the first batch."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the tokens of all prompts that stay, by section and split."""
    prompt_tokens: dict[str, float] = field(default_factory=dict)
    """Mean tokens of a section's prompts: those that train, and those of a suite's last split."""


def fit_prompts(uses: Iterable[PromptUse], encode: Encode | None, window: int) -> Fit:
    """Hold every prompt and its longest response against the window; drop over-long prompts where the data says so,
    and see that enough are left.

    Of data sets all prompts count, of endless tasks the first batch and those of the suites (`draw_fitting` has the
    later ones). Episodes, whose prompts are not known before, get their limit.

    Args:
        uses: of the prompts.
        encode: gives the tokens of prompts; None counts nothing, and checks the limits of responses alone.
        window: tokens of a prompt and its response at most.
    """
    fit = Fit()
    for use in uses:
        try:
            if use.response_tokens >= window:
                raise ValueError(
                    f"{use.limit_field}: {use.response_tokens} leaves no room for a prompt in the model's window of "
                    f"{window} tokens; lower it, or raise rollout.max_model_len if that is what bounds the window"
                )
            if getattr(use.task, "multi_turn", False):
                use.task.limit_prompt_tokens(window - use.response_tokens)
            elif encode is not None:
                _fit_use(fit, use, encode, window)
            _prompts_of(use)
        except ValueError as error:
            problem = str(error) if str(error).startswith(use.limit_field) else f"{use.section}: {error}"
            fit.problems += [problem] if problem not in fit.problems else []
    return fit


def _prompts_of(use: PromptUse) -> list[Prompt]:
    """Draw the prompts of one use.

    Raises:
        ValueError: there are too few.
    """
    try:
        return use.task.prompts(use.split, use.count)
    except ValueError as error:
        raise ValueError(f"{error} ({use.count_field} asks for {use.count:,})") from error


def _fit_use(fit: Fit, use: PromptUse, encode: Encode, window: int) -> None:
    """Count the prompts of one use.

    Raises:
        ValueError: there are too few, or some are too long and are not to be dropped.
    """
    data, limit = getattr(use.task, "data", None), window - use.response_tokens
    replaced = 0
    if data is not None:
        prompts = data.all_prompts(use.split)
    elif getattr(use.task, "drops_overlong", False):
        drawn = draw_fitting(use.task, use.split, use.count, 0, encode, limit)
        prompts, replaced = drawn.prompts, drawn.replaced
    else:
        prompts = _prompts_of(use)
    digest, total = hashlib.sha256(), 0
    overlong: list[tuple[Prompt, int]] = []
    for prompt, tokens in _encoded(prompts, encode):
        if len(tokens) > limit:
            overlong.append((prompt, len(tokens)))
        else:
            digest.update(f"{prompt.id} {' '.join(map(str, tokens))}\n".encode())
            total += len(tokens)
    if overlong and not (data is not None and data.drops_overlong):
        raise ValueError(_refusal(use, overlong, len(prompts), window, limit))
    if overlong:
        data.drop_overlong(use.split, {prompt.id for prompt, _ in overlong})
    if left_out := len(overlong) + replaced:
        of = len(prompts) + replaced
        fit.overlong.append(OverlongPrompts(use.section, use.split, left_out, replaced > 0, of))
    fit.digests[f"{use.section}, {use.split} prompts as tokens"] = digest.hexdigest()
    if kept := len(prompts) - len(overlong):
        fit.prompt_tokens[use.section] = total / kept


@dataclass
class Drawn:
    """Prompts that fit the window."""

    prompts: list[Prompt]
    tokens: list[Sequence[int]]
    """Tokens of each prompt."""
    replaced: int
    """Number of prompts that were drawn and did not fit."""


def draw_fitting(task: Any, split: Split, count: int, seed: int, encode: Encode, limit: int | None) -> Drawn:
    """Draw prompts; those of an endless task that are too long give way to further ones, the same for every run.

    Args:
        task, split, count, seed: as for `rollout.tasks.base.Task.prompts`.
        encode: gives the tokens of prompts.
        limit: tokens of a prompt at most; None is no limit.

    Raises:
        ValueError: the task has too few prompts, or too few that fit.
    """
    found = Drawn([], [], 0)
    for draw in range(MOST_DRAWS):
        known = {prompt.id for prompt in found.prompts}
        fresh = task.prompts(split, count, seed if draw == 0 else stable_seed("overlong", seed, draw))
        for prompt, tokens in _encoded([prompt for prompt in fresh if prompt.id not in known], encode):
            if limit is None or len(tokens) <= limit:
                found.prompts.append(prompt)
                found.tokens.append(tokens)
            else:
                found.replaced += 1
            if len(found.prompts) == count:
                return found
    raise ValueError(
        f"only {len(found.prompts)} of {count} {split} prompts fit the {limit:,} tokens that the model's window leaves "
        f"beside a response, in {MOST_DRAWS} draws"
    )


def _encoded(prompts: Sequence[Prompt], encode: Encode) -> Iterator[tuple[Prompt, Sequence[int]]]:
    return zip(prompts, encode(prompts), strict=True) if prompts else iter(())


def _refusal(use: PromptUse, overlong: Sequence[tuple[Prompt, int]], count: int, window: int, limit: int) -> str:
    data = getattr(use.task, "data", None)
    named = [f"{data.row_of(p) if data else p.id} ({tokens:,} tokens)" for p, tokens in overlong[:SHOWN]]
    more = len(overlong) - len(named)
    fix = f"lower {use.limit_field}"
    if data is not None:
        fix += ", or set overlong_prompts: drop in its data section"
    elif hasattr(use.task, "drops_overlong"):
        fix += ", or set overlong_prompts: drop"
    return (
        f"{len(overlong):,} of {count:,} {use.split} prompts are longer than the {limit:,} tokens that "
        f"the model's window of {window:,} leaves beside a response of {use.response_tokens:,}: {', '.join(named)}"
        f"{f' and {more} more' if more else ''}; {fix}"
    )
