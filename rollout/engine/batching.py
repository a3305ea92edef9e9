"""Mixed or swap? Measured on the sweep's own requests, not guessed."""

import logging
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

TRIALS = 2
"""Number of windows of each mode before a decision."""
REVIEW = 40
"""Number of windows after which both modes are tried again: response lengths change as runs learn."""
MARGIN = 1.03
"""Factor by which swap must be faster to be chosen; mixed also keeps runs from waiting for each other."""


@dataclass
class MeasurementWindow:
    """Work done in one measurement window, in one mode."""

    tokens: int = 0
    seconds: float = 0.0
    requests: int = 0
    runs: int = 0
    """Largest number of runs that were waiting or served at the same time."""


@dataclass
class AutoBatching:
    """Choice of mode by measurement: alternates them for a few windows and keeps the one with more tokens a second.

    A window is over after `window_requests` finished requests, as many as there are runs at least, and `window_seconds`
    of engine time. While modes are tried it ends with nothing in flight: no new request is admitted (`draining`) until
    those in flight are done, so that no request counts in two windows. The
    first one is thrown away.
    """

    window_requests: int = 8
    window_seconds: float = 0.25
    mixed: bool = True
    decided: bool = False
    draining: bool = False
    reason: str = "not measured yet"
    _trials: dict[bool, list[MeasurementWindow]] | None = None
    _window: MeasurementWindow = field(default_factory=MeasurementWindow)
    _since: int = 0

    def observe(self, tokens: int, seconds: float, finished: int, runs: int) -> None:
        """Record an engine step: tokens of requests that finished, engine seconds, number of finished requests, and of
        runs waiting or served. With a single run the modes are the same: no window begins."""
        window = self._window
        if runs < 2 and not window.seconds:
            return
        window.tokens, window.seconds = window.tokens + tokens, window.seconds + seconds
        window.requests, window.runs = window.requests + finished, max(window.runs, runs)
        if window.requests < max(self.window_requests, window.runs) or window.seconds < self.window_seconds:
            return
        if self.decided:
            self._window, self._since = MeasurementWindow(), self._since + 1
        self.draining = not self.decided or self._since >= REVIEW

    def drained(self) -> None:
        """Change the mode if due; called when nothing is in flight."""
        window, self._window, self.draining = self._window, MeasurementWindow(), False
        if self.decided or self._trials is None:
            self.decided, self._since, self._trials = False, 0, {True: [], False: []}
            return
        self._trials[self.mixed].append(window)
        if all(len(trials) >= TRIALS for trials in self._trials.values()):
            self._decide()
        else:
            self.mixed = not self.mixed

    def _decide(self) -> None:
        rate = {mode: sum(w.tokens for w in ws) / sum(w.seconds for w in ws) for mode, ws in self._trials.items()}
        self.mixed, self.decided = rate[False] <= MARGIN * rate[True], True
        self.reason = f"mixed {rate[True]:.0f}, swap {rate[False]:.0f} tokens per engine second"
        logger.info("rollout.batching auto: %s (%s)", "mixed" if self.mixed else "swap", self.reason)
