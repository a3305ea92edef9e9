"""The micro batches of an optimizer step, each with the input of its first trained block, made when they are needed.

Over several epochs neither that input nor the reference's log-probabilities change. Both are cached in the first epoch
as far as the budget goes; what exceeds it is computed again in each epoch, to the same bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass

from torch import Tensor

from layersweep.policies.model.tree_batch import MicroBatch


@dataclass(frozen=True)
class TrainingMicroBatch:
    """A micro batch, the input of its first trained block, for each of its tokens the loss weight and, with a KL term,
    the base model's log-probability, and whether any weight is above 0: not where another rank has it too."""

    batch: MicroBatch
    hidden: Tensor | None
    weight: Tensor
    ref_logp: Tensor | None
    counts: bool = True


@dataclass
class CacheBudget:
    """Bytes that are left for what epochs share."""

    left: int

    def take(self, size: int) -> bool:
        """Take `size` bytes if there are so many; return whether there were."""
        if size > self.left:
            return False
        self.left -= size
        return True


class MicroBatchCache:
    """One rank's share of an optimizer step, to be iterated over once per epoch.

    Not a Sequence: a `for` over one takes an IndexError raised within for its end, and a batch that cannot be computed
    (a token outside the embedding) would leave the step empty without a word.

    Args:
        factories: each makes a micro batch, given the reference's log-probabilities if they are known already.
        budget: shared by all optimizer steps of a rollout batch.
    """

    def __init__(self, factories: list[Callable[[Tensor | None], TrainingMicroBatch]], budget: CacheBudget):
        self.factories, self.budget = factories, budget
        self.cached: dict[int, TrainingMicroBatch] = {}
        self.references: dict[int, Tensor | None] = {}
        """Reference log-probabilities, four bytes a token: always kept."""

    def __len__(self) -> int:
        return len(self.factories)

    def __iter__(self) -> Iterator[TrainingMicroBatch]:
        for number in range(len(self)):
            yield self._get(number)

    def _get(self, number: int) -> TrainingMicroBatch:
        if number in self.cached:
            return self.cached[number]
        micro_batch = self.factories[number](self.references.get(number))
        self.references[number] = micro_batch.ref_logp
        if self.budget.take(tensor_bytes(micro_batch)):
            self.cached[number] = micro_batch
        return micro_batch


def tensor_bytes(item: object) -> int:
    """Return the bytes of all tensors in a dataclass or tuple, nested ones too."""
    if isinstance(item, Tensor):
        return item.nbytes
    parts = vars(item).values() if is_dataclass(item) else item if isinstance(item, tuple) else ()
    return sum(map(tensor_bytes, parts))
