"""Display of a sweep while it runs: a live table on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rich.live import Live
from rich.table import Table

from layersweep.orchestrator.report.format import plain_console

from .run_state import RunState

NAMED = 8
"""Runs named in a plain line, at most."""


@dataclass(frozen=True)
class ProgressEvent:
    """One thing that happened while a sweep ran, and how far the sweep was then."""

    run: str
    """Run's name (`layer-07-seed0`); empty for a message about the sweep as a whole."""
    status: str
    """Run's state, such as generating, updating, completed, failed, pruned; empty with `message` alone."""
    step: int
    """Training steps that the run has completed."""
    steps: int
    """Training steps that the run is to complete."""
    metrics: dict[str, float]
    """The step's numbers, by column of steps.parquet; empty where no step was completed."""
    message: str
    """Text of a notice, or the reason why a run ended; empty for most steps."""
    sweep_step: int
    """Training steps that all runs together have completed."""
    sweep_steps: int
    """Training steps that all runs together are to complete; in a search as many as it is expected to take."""

    def __str__(self) -> str:
        far = f"[{self.sweep_step}/{self.sweep_steps}]"
        if not self.run:
            return f"{far} {self.message}"
        reward = f", reward {self.metrics['reward_mean']:.3f}" if "reward_mean" in self.metrics else ""
        reason = f": {self.message}" if self.message else ""
        return f"{far} {self.run} {self.status}, step {self.step} of {self.steps}{reward}{reason}"


Listener = Callable[[ProgressEvent], None]


@dataclass
class _ProgressRow:
    """One run's state."""

    steps: int
    """Steps to train."""
    step: int = 0
    reward: float = float("nan")
    tokens_per_second: float = 0.0
    seconds_per_step: float = 0.0
    state: RunState = RunState.WAITING

    def __str__(self) -> str:
        """Steps and, once there is one, the last reward."""
        return f"{self.step}/{self.steps}" + ("" if math.isnan(self.reward) else f" {self.reward:.2f}")


class Progress:
    """Rows per run, refreshed in place on a terminal; else a line every few seconds.

    Args:
        runs: run names in display order.
        steps: training steps of each, of those that are added later too unless they have their own.
        interval: seconds between plain lines at first.
        listen: called with every event, beside what is printed.
        spared: steps that a search is to spare, by ending runs early.
    """

    def __init__(
        self, runs: list[str], steps: int, interval: float = 5.0, listen: Listener | None = None, spared: int = 0
    ):
        self.listen, self.spared = listen, spared
        self.rows = {name: _ProgressRow(steps) for name in runs}
        self.steps, self.interval = steps, interval
        self.console = plain_console(sys.stderr)
        self.live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self.began = self.ready = self.printed = time.monotonic()
        self.made = 0
        """Steps since `ready`."""
        if self.live:
            self.live.start()

    def say(self, text: str) -> None:
        line = f"[{time.monotonic() - self.began:5.0f} s] {text}"
        self.console.print(line, soft_wrap=True)
        self._tell("", message=text)

    def started(self, seconds: float) -> None:
        self.ready = time.monotonic()
        self.say(f"started in {seconds:.1f} s: engine and base model are ready")

    def stepped(self, run: str, step: int, metrics: dict[str, Any], seconds: float) -> None:
        row, self.made = self.rows[run], self.made + 1
        row.step, row.reward = step, metrics["reward_mean"]
        row.tokens_per_second = metrics["tokens"] / seconds
        row.seconds_per_step = seconds if step <= 2 else 0.8 * row.seconds_per_step + 0.2 * seconds
        self._tell(run, {name: float(value) for name, value in metrics.items() if isinstance(value, Real)})
        self._show()

    def resumed(self, run: str, step: int) -> None:
        """Note that a run goes on from a checkpoint."""
        self.rows[run].step = step
        self.say(f"{run}: going on after step {step}")

    def entered(self, run: str, state: RunState) -> None:
        """Note a run's new state. Nothing is drawn for it: there are many, and the next step shows it."""
        self.rows[run].state = state

    def already(self, run: str, state: RunState) -> None:
        """Note a run that an earlier start has brought to its end."""
        row = self.rows[run]
        row.state = state
        if state is RunState.COMPLETED:
            row.step = row.steps
        else:  # pruned, at an earlier start
            self._prune(row)

    def add(self, run: str, steps: int | None = None) -> None:
        """Add a run that was not known at the start."""
        self.rows[run] = _ProgressRow(self.steps if steps is None else steps)

    def ended(self, run: str, reason: str | None) -> None:
        """Note that a run has reached its end."""
        row = self.rows[run]
        if row.state is RunState.PRUNED:
            self._prune(row)
        if reason:
            self.say(f"{run}: {reason}" if row.state is RunState.STOPPED else f"{run} {row.state.value}: {reason}")
        self._tell(run, message=reason or "")
        self._show()

    def close(self) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()
            self.live = None

    def _prune(self, row: _ProgressRow) -> None:
        self.spared = max(0, self.spared - (row.steps - row.step))
        row.steps = row.step

    def _totals(self) -> tuple[int, int]:
        """Return the steps that all runs have made, and those that they are to make."""
        made, all_steps = (sum(getattr(row, name) for row in self.rows.values()) for name in ("step", "steps"))
        return made, max(made, all_steps - self.spared)

    def _tell(self, run: str, metrics: dict[str, float] | None = None, message: str = "") -> None:
        """Pass an event on to the listener; `run` is empty for one about the sweep as a whole."""
        if self.listen is None:
            return
        row = self.rows[run] if run else None
        of_run = (run, row.state.value, row.step, row.steps) if row else ("", "", 0, 0)
        self.listen(ProgressEvent(*of_run, metrics or {}, message, *self._totals()))

    def _show(self) -> None:
        if self.live:
            self.live.update(self._table())
        elif time.monotonic() - self.printed > self._pause():
            self.printed = time.monotonic()
            steps, total = self._totals()
            left = (total - steps) * (self.printed - self.ready) / max(1, self.made)
            busy = [f"{name} {row}" for name, row in self.rows.items() if row.state.at_work]
            more = f" and {len(busy) - NAMED} more" if len(busy) > NAMED else ""
            self.say(f"step {steps}/{total}, about {left:.0f} s left; at work: {', '.join(busy[:NAMED])}{more}")

    def _pause(self) -> float:
        """Return the seconds between plain lines: a log of days should still be readable."""
        return max(self.interval, min(60.0, (time.monotonic() - self.began) / 60))

    def _left(self, row: _ProgressRow) -> float:
        return 0.0 if row.state.ended else (row.steps - row.step) * row.seconds_per_step

    def _table(self) -> Table:
        """Draw as many runs as the terminal has lines for, those that are at work first."""
        idle = {name: not row.state.at_work for name, row in self.rows.items()}
        shown = sorted(self.rows, key=idle.__getitem__)[: max(5, self.console.size.height - 6)]
        hidden = len(self.rows) - len(shown)
        table = Table(
            title=f"{time.monotonic() - self.began:.0f} s", caption=f"and {hidden} more runs" if hidden else None
        )
        for column in ("run", "step", "reward", "tokens/s", "left", "status"):
            table.add_column(column, justify="left" if column in ("run", "status") else "right")
        for name in shown if hidden else self.rows:
            row = self.rows[name]
            table.add_row(
                name, f"{row.step}/{row.steps}", f"{row.reward:.3f}", f"{row.tokens_per_second:.0f}",
                f"{self._left(row):.0f} s", row.state.value,
            )  # fmt: skip
        return table
