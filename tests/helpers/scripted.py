"""A model that does what it is told: characters are tokens, and a function makes the responses."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from layersweep.rollout.environments.base import EnvironmentTask, InitialState
from layersweep.rollout.environments.episodes import EpisodeBatch, play
from layersweep.rollout.types import Completions, Prompt


def encode(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], np.int32)


def encode_prompt(prompt: Prompt) -> np.ndarray:
    """Tokens of its text, or of `role: content` line by line."""
    return encode(prompt.text or "".join(f"{m['role']}: {m['content']}\n" for m in prompt.messages))


def decode(responses: Sequence[np.ndarray]) -> list[str]:
    return ["".join(map(chr, response)) for response in responses]


class Model:
    """Calls `write(prompt, seed)` for each response, and remembers what it was asked."""

    def __init__(self, write: Callable[[str, int], str]):
        self.write = write
        self.asked: list[list[tuple[str, int]]] = []

    async def __call__(self, prompts: list[np.ndarray], seeds: list[int]) -> Completions:
        await asyncio.sleep(0)
        texts = decode(prompts)
        self.asked.append(list(zip(texts, seeds, strict=True)))
        responses = [self.write(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        tokens = encode("".join(responses))
        lengths = np.array([len(response) for response in responses], np.int32)
        return Completions(tokens, -0.5 * np.ones(len(tokens), np.float32), lengths, np.ones(len(lengths), bool), 4)


def played(
    task: EnvironmentTask, starts: Sequence[InitialState], samples: int, model: Model, scope: tuple = ()
) -> EpisodeBatch:
    return asyncio.run(play(task, starts, samples, model, encode_prompt, decode, scope))
