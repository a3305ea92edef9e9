"""The states of a run, and which may follow which."""

from collections.abc import Callable
from enum import Enum


class RunState(Enum):
    """Where a run is.

    WAITING -> STARTING -> (GENERATING -> UPDATING -> SYNCING)* -> FINISHING -> EVALUATING -> COMPLETED

    After a SYNCING the run may be scored (EVALUATING) and, in a search, decided about (FINISHING -> PAUSED_AT_RUNG).
    A failure leads to RECOVERING, from where the run goes on with what is not done.
    """

    WAITING = "waiting"
    """For a run slot."""
    STARTING = "starting"
    """Trainers start and restore the newest checkpoint."""
    GENERATING = "generating"
    """The engine generates the responses of a training step."""
    UPDATING = "updating"
    """The trainers take optimizer steps."""
    SYNCING = "syncing"
    """The run's weights travel to its engine."""
    EVALUATING = "evaluating"
    """The engine generates responses to the evaluation suites."""
    FINISHING = "finishing"
    """The overlay and a checkpoint are written."""
    PAUSED_AT_RUNG = "paused"
    """Waits for a search's other runs."""
    RECOVERING = "recovering"
    """What failed is replaced."""
    COMPLETED = "completed"
    """All steps and evaluations are done."""
    PRUNED = "pruned"
    """Stopped by a search."""
    FAILED = "failed"
    """Ended by an error of its own."""
    STOPPED = "stopped"
    """Interrupted with the sweep; it goes on at the next start."""

    @property
    def ended(self) -> bool:
        """Whether no state follows."""
        return self in (RunState.COMPLETED, RunState.PRUNED, RunState.FAILED, RunState.STOPPED)

    @property
    def at_work(self) -> bool:
        """Whether it uses an engine or trainers."""
        return not self.ended and self not in (RunState.WAITING, RunState.PAUSED_AT_RUNG)

    @property
    def status(self) -> str:
        """The status in the tables: running, completed, pruned or failed."""
        return self.value if self.ended and self is not RunState.STOPPED else "running"


_S = RunState
_LEAVE = {_S.RECOVERING, _S.FAILED, _S.STOPPED}
"""Possible at any moment of a run's work."""
TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    state: frozenset(follow)
    for state, follow in {
        # A run that an earlier start has brought to its end goes there at once.
        _S.WAITING: {_S.STARTING, _S.COMPLETED, _S.PRUNED, _S.FAILED, _S.STOPPED},
        # A checkpoint may stand before a step, at an evaluation, or at the end.
        _S.STARTING: {_S.GENERATING, _S.SYNCING, _S.EVALUATING, _S.FINISHING, *_LEAVE},
        _S.GENERATING: {_S.UPDATING, *_LEAVE},
        _S.UPDATING: {_S.SYNCING, *_LEAVE},
        _S.SYNCING: {_S.GENERATING, _S.EVALUATING, _S.FINISHING, *_LEAVE},
        _S.EVALUATING: {_S.GENERATING, _S.SYNCING, _S.FINISHING, _S.COMPLETED, *_LEAVE},
        _S.FINISHING: {_S.SYNCING, _S.EVALUATING, _S.PAUSED_AT_RUNG, *_LEAVE},
        # Trainers that were given up start again, in a run slot that may have to be waited for.
        _S.PAUSED_AT_RUNG: {_S.WAITING, _S.STARTING, _S.SYNCING, _S.GENERATING, _S.PRUNED, *_LEAVE},
        _S.RECOVERING: {_S.STARTING, _S.SYNCING, _S.GENERATING, _S.EVALUATING, _S.FINISHING, *_LEAVE},
    }.items()
} | dict.fromkeys((_S.COMPLETED, _S.PRUNED, _S.FAILED, _S.STOPPED), frozenset())
"""States that may follow each state. A phase may also be repeated: a state may follow itself, unless it is an end."""


class IllegalTransition(RuntimeError):
    """A state that cannot follow the current one: a bug of the controller."""


class RunLifecycle:
    """The state of one run, changed by legal transitions alone.

    Args:
        run: name, for messages.
        watch: called with the run's name and each new state.

    Example:
        lifecycle = RunLifecycle("layer-03-seed0")
        lifecycle.enter(RunState.STARTING)
        lifecycle.enter(RunState.PRUNED)  # raises IllegalTransition
    """

    def __init__(self, run: str, watch: Callable[[str, RunState], None] = lambda run, state: None):
        self.run, self.watch = run, watch
        self.state = RunState.WAITING

    def enter(self, state: RunState) -> None:
        """Go to another state, or repeat this one.

        Raises:
            IllegalTransition: it cannot follow.
        """
        repeated = state is self.state and not state.ended
        if not repeated and state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"{self.run}: {state.name} cannot follow {self.state.name}")
        self.state = state
        self.watch(self.run, state)
