"""Responses of the base to the prompts of a first training step, shared by sweeps that ask it for the very same.

    <output>/<name>/first_rollouts/<digest>.npz     of a spec with factors, for all its sweeps

A file is named by a digest of everything that the engine's answer follows from: model, engine, prompts, sampling
seeds, sampling. So two sweeps share a batch exactly where each would have generated it. Scores are no part of it:
sweeps may reward the same responses in other ways.
"""

import io
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from layersweep.rollout.types import Completions, Sampling

from .files import read_bytes, write_atomically

logger = logging.getLogger(__name__)

FOLDER = "first_rollouts"
ARRAYS = ("tokens", "logprobs", "lengths", "finished")
"""Fields of Completions that are kept: the others are 0 for the base, and for what is not generated."""


@dataclass(frozen=True)
class CompletionStore:
    """Reads and writes these files.

    A file that cannot be read or written costs no batch: it is generated, and the log says why.
    """

    folder: str
    engine: str
    """Text that differs wherever another model or engine would answer."""
    steps: int
    """First training steps of every run that the base generates: 1, with a staleness of 1 it is 2."""

    def read(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling) -> Completions | None:
        """Return the responses to these prompts, None where there are none."""
        path = self._path(prompts, seeds, sampling)
        try:
            if (content := read_bytes(path)) is None:
                return None
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return Completions(**{name: arrays[name] for name in ARRAYS}, version=0)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): the batch is generated once more", path, error)
            return None

    def write(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling, done: Completions) -> None:
        """Keep the responses to these prompts."""
        path = self._path(prompts, seeds, sampling)
        try:
            write_atomically(path, lambda file: np.savez(file, **{name: getattr(done, name) for name in ARRAYS}))
        except OSError as error:
            logger.warning("%s cannot be written (%s): other sweeps generate the batch too", path, error)

    def _path(self, prompts: Sequence[np.ndarray], seeds: Sequence[int], sampling: Sampling) -> str:
        asked = [self.engine, repr(sampling), repr(list(seeds)), *(repr(prompt.tolist()) for prompt in prompts)]
        return f"{self.folder}/{xxhash.xxh3_128_hexdigest('|'.join(asked).encode())}.npz"
