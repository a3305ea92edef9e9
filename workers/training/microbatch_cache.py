"""The micro batches of an optimizer step, each with what lies below the trained weights, made when asked for.

Over several epochs neither the input of the first trained block nor the reference changes. Both are kept from the
first epoch on as far as there is room, and computed again, to the same bits, beyond it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass

from torch import Tensor

from layersweep.policies.model.tree_batch import MicroBatch


@dataclass(frozen=True)
class TrainingMicroBatch:
    """A micro batch, the input of its first trained block, and for each of its tokens the loss weight and, with a
    KL term, the base model's log-probability."""

    batch: MicroBatch
    hidden: Tensor | None
    weight: Tensor
    ref_logp: Tensor | None


@dataclass
class CacheBudget:
    """Bytes that are left for what epochs share."""

    left: int

    def take(self, size: int) -> bool:
        """Whether there was room for so many more."""
        if size > self.left:
            return False
        self.left -= size
        return True


class MicroBatchCache(Sequence[TrainingMicroBatch]):
    """One rank's share of an optimizer step.

    Args:
        works: each makes a piece, given the reference's log-probabilities if they are known already.
        room: shared by all steps of a rollout batch.
    """

    def __init__(self, works: list[Callable[[Tensor | None], TrainingMicroBatch]], room: CacheBudget):
        self.works, self.room = works, room
        self.kept: dict[int, TrainingMicroBatch] = {}
        self.references: dict[int, Tensor | None] = {}  # four bytes a token: always kept

    def __len__(self) -> int:
        return len(self.works)

    def __getitem__(self, index: int) -> TrainingMicroBatch:
        if index in self.kept:
            return self.kept[index]
        if index >= len(self):
            raise IndexError(index)
        piece = self.works[index](self.references.get(index))
        self.references[index] = piece.ref_logp
        if self.room.take(memory(piece)):
            self.kept[index] = piece
        return piece


def memory(item: object) -> int:
    """Bytes of all tensors in a dataclass or tuple, nested ones too."""
    if isinstance(item, Tensor):
        return item.nbytes
    parts = vars(item).values() if is_dataclass(item) else item if isinstance(item, tuple) else ()
    return sum(map(memory, parts))
