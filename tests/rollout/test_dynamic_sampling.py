"""Groups without signal replaced by further prompts: which, how many, in what order, and what it costs."""

import asyncio

import numpy as np
import pytest

from layersweep.rollout.dynamic_sampling import group_experience, response_groups, sample_groups
from layersweep.rollout.types import Completions, Prompt, Score


def group_of(name: str, signal: bool):
    """Two responses of 1 and 3 tokens; prompt and tokens say whose they are."""
    lengths, tokens = np.array([1, 3], np.int32), np.full(4, ord(name[0]), np.int32)
    done = Completions(tokens, np.full(4, -0.5, np.float32), lengths, np.array([True, False]), 3)
    prompt = np.array([ord(name[0]), int(name[1:] or 0)], np.int32)
    return response_groups([prompt], done, [Score(1.0, True), Score(0.0 if signal else 1.0, False, judged=signal)])[0]


def run(batches: list[str], without: str, wanted: int, rounds: int):
    """Prompts of each round as letters; those in `without` have no signal. Groups, discarded tokens, what was asked."""
    asked: list[str] = []

    async def generate(prompts):
        asked.append("".join(prompt.id for prompt in prompts))
        return [group_of(prompt.id, prompt.id not in without) for prompt in prompts]

    def draw(number):
        return [Prompt(letter) for letter in batches[number]]

    groups, discarded = asyncio.run(sample_groups(draw, generate, wanted, rounds))
    return "".join(chr(group.prompt[0]) for group in groups), discarded, asked


@pytest.mark.parametrize(
    ("batches", "without", "rounds", "expected"),
    [
        # One round: as they come, with a signal or not.
        (["abcd"], "bd", 1, ("abcd", 0, ["abcd"])),
        # Two of four had none: two are missing, at a share of 1/2 that takes four.
        (["abcd", "efgh"], "bd", 5, ("acef", 16, ["abcd", "efgh"])),
        # One missing at 3/4 takes ceil(4/3) = 2 of the next batch, of which the second is not needed.
        (["abcd", "efgh"], "b", 5, ("acde", 8, ["abcd", "ef"])),
        # The bound: what is missing stays without signal, the first ones, in order.
        (["abcd", "efgh"], "abcefgh", 2, ("abcd", 16, ["abcd", "efgh"])),
        # None had any: a whole batch more.
        (["abcd", "efgh", "ijkl"], "abcdef", 3, ("ghij", 32, ["abcd", "efgh", "ijkl"])),
        # Prompts that were asked before are left out; a batch of nothing else ends it.
        (["abcd", "aebf"], "ab", 2, ("cdef", 8, ["abcd", "ef"])),
        (["abcd", "abcd"], "ab", 9, ("abcd", 0, ["abcd"])),
        (["abcd"], "", 9, ("abcd", 0, ["abcd"])),
    ],
)
def test_which_groups_make_a_batch(batches, without, rounds, expected):
    assert run(batches, without, 4, rounds) == expected


def test_groups_become_experience():
    """Two groups of two responses of 1 and 3 tokens."""
    experience = group_experience([group_of("a", True), group_of("b", False)], version=3)
    assert experience.group.tolist() == [0, 0, 1, 1] and experience.trajectory.tolist() == [0, 1, 2, 3]
    assert experience.lengths.tolist() == [1, 3, 1, 3] and experience.tokens.tolist() == [97] * 4 + [98] * 4
    assert [int(prompt[0]) for prompt in experience.prompts] == [97, 97, 98, 98]
    assert experience.reward.tolist() == [1, 0, 1, 1] and experience.reward.dtype == np.float32
    assert experience.truncated.tolist() == [False, True] * 2 and experience.format_ok.tolist() == [True, False] * 2
    assert experience.metrics == {"unjudged_fraction": 0.25} and experience.version == 3


def test_completions_are_cut_by_group():
    done = Completions(np.arange(6), np.arange(6) / 10, np.array([1, 2, 1, 2]), np.ones(4, bool), 0)
    scores = [Score(float(i), True) for i in range(4)]
    first, second = response_groups([np.array([7]), np.array([8])], done, scores)
    assert first.tokens.tolist() == [0, 1, 2] and second.tokens.tolist() == [3, 4, 5]
    assert first.lengths.tolist() == second.lengths.tolist() == [1, 2]
    assert [score.reward for score in second.scores] == [2, 3] and second.prompt.tolist() == [8]
