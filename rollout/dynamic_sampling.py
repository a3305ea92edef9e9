"""Dynamic sampling: prompts whose responses are all scored alike, which teach nothing, replaced by further ones.

DAPO (Yu et al. 2025, arXiv 2503.14476, section 3.2). The batch so keeps its size as a policy masters its prompts; what
that costs are the tokens of the groups that are not used.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .types import Completions, Experience, Prompt, Score


@dataclass(frozen=True)
class ResponseGroup:
    """The responses to one prompt, scored."""

    prompt: np.ndarray
    """int32 tokens."""
    tokens: np.ndarray
    logprobs: np.ndarray
    """Flat, cut by `lengths`."""
    lengths: np.ndarray
    finished: np.ndarray
    scores: Sequence[Score]

    @property
    def has_signal(self) -> bool:
        """Whether its responses are scored unlike, so that there is something to compare."""
        return len({score.reward for score in self.scores}) > 1


def response_groups(prompts: Sequence[np.ndarray], done: Completions, scores: Sequence[Score]) -> list[ResponseGroup]:
    """Cut completions of several prompts, equally many each, into groups."""
    size = len(done.lengths) // len(prompts)
    ends = np.concatenate([[0], np.cumsum(done.lengths)])
    groups = []
    for number, prompt in enumerate(prompts):
        rows = slice(number * size, (number + 1) * size)
        flat = slice(ends[rows.start], ends[rows.stop])
        groups.append(
            ResponseGroup(
                prompt, done.tokens[flat], done.logprobs[flat], done.lengths[rows], done.finished[rows], scores[rows]
            )
        )
    return groups


async def sample_groups(
    draw: Callable[[int], Sequence[Prompt]],
    generate: Callable[[Sequence[Prompt]], Awaitable[list[ResponseGroup]]],
    wanted: int,
    rounds: int,
) -> tuple[list[ResponseGroup], int]:
    """Generate groups until `wanted` have a signal, in so many rounds at most; what is missing has none.

    Each further round asks for as many prompts as should suffice by the share of groups with a signal so far, `wanted`
    at most, and leaves out prompts that were asked before. With one round these are simply the first prompts' groups.

    Args:
        draw: gives the `wanted` prompts of a round, from 0.
        generate: gives a group for each prompt, in order.

    Returns:
        `wanted` groups in the order in which they were generated, and the response tokens of those left out.
    """
    groups: list[ResponseGroup] = []
    asked: set[str] = set()
    for number in range(rounds):
        found = sum(group.has_signal for group in groups)
        if found >= wanted:
            break
        needed = wanted if not found else min(wanted, math.ceil((wanted - found) * len(groups) / found))
        prompts = [prompt for prompt in draw(number) if prompt.id not in asked][:needed]
        if not prompts:
            break
        asked |= {prompt.id for prompt in prompts}
        groups += await generate(prompts)
    # A stable sort: those with a signal first, then in order.
    best = sorted(range(len(groups)), key=lambda place: not groups[place].has_signal)
    chosen = set(best[:wanted])
    left_out = sum(int(group.lengths.sum()) for place, group in enumerate(groups) if place not in chosen)
    return [groups[place] for place in sorted(chosen)], left_out


def group_experience(groups: Sequence[ResponseGroup], version: int) -> Experience:
    """Make training data of groups: a row per response."""
    lengths = np.concatenate([group.lengths for group in groups])
    scores = [score for group in groups for score in group.scores]
    rows = np.arange(len(lengths))
    sizes = [len(group.lengths) for group in groups]
    return Experience(
        prompts=[group.prompt for group in groups for _ in group.scores],
        tokens=np.concatenate([group.tokens for group in groups]),
        logprobs=np.concatenate([group.logprobs for group in groups]),
        lengths=lengths,
        reward=np.array([score.reward for score in scores], np.float32),
        group=np.repeat(np.arange(len(groups)), sizes),
        trajectory=rows,
        step=np.zeros_like(rows),
        truncated=~np.concatenate([group.finished for group in groups]),
        format_ok=np.array([score.format_ok for score in scores]),
        version=version,
        metrics={"unjudged_fraction": float(np.mean([not score.judged for score in scores]))},
    )
