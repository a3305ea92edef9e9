"""The seam between an update and the training library behind it."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from layersweep.policies.model.tree_batch import MicroBatch
from layersweep.policies.model.trunk import Policy


class TrainerBackend(Protocol):
    """Keeps the trained parameters of one run with their gradients and optimizer state, over all ranks of the run.

    For each optimizer step `UpdateLoop` calls `forward` and `backward` once per micro batch, then `step`. The `Trainer`
    actor calls `weights` after an update, to send them to the engine, and at the end of the run. `training_state` calls
    `gathered`, `state` and `load_state` for checkpoints. Every rank makes the same calls in the same order: each may be
    a collective operation.

    A new backend is a class with these members, made in place of `DeepSpeedBackend` in `workers.actors.trainer`.
    """

    policy: Policy
    """The trained copy. Its own `forward` is for gradients that are no part of an update."""
    sharded: bool
    """Whether the ranks split optimizer state, gradients or weights between them (ZeRO 1 to 3, FSDP)."""

    def forward(self, batch: MicroBatch, hidden: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
        """Return `Policy.forward` of one micro batch, with whatever the library adds around it."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add this micro batch's gradients to those so far.

        Args:
            loss: this rank's share; the gradient is the mean over ranks of the sums of its micro batches.
            last: whether it is the last micro batch before `step`.
        """

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, make one optimizer step, clear the gradients.

        Args:
            learning_rate: of this step; parameter groups with a factor (boost) get that multiple of it.

        Returns:
            The L2 norm of the gradient over all ranks, before clipping.

        Raises:
            NonFinite: the norm is NaN or infinite.
        """

    def weights(self) -> dict[str, Tensor]:
        """Return the trained parameters by Hugging Face name, whole: valid until the next step. Ranks other than 0 may
        get none."""

    def gathered(self, writer: int | None = None) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each trained parameter itself with its Hugging Face name, whole on every rank until the next.

        Args:
            writer: the rank whose changes to them all ranks get; None where none changes them.
        """

    def state(self) -> dict[str, Tensor]:
        """Return this rank's optimizer state and master weights, by names of the backend's own."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave in a run of the same selection, ranks and settings.

        Raises:
            WrongCheckpoint: it does not fit.
        """


class NonFinite(RuntimeError):
    """A loss or gradient that is NaN or infinite: the run has collapsed."""


class WrongCheckpoint(RuntimeError):
    """A checkpoint of another selection, optimizer or number of ranks."""
