"""Mixed or swap? Measured on the sweep's own requests, not guessed."""

import logging
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

TRIALS = 2
"""Windows of each mode before a decision."""
REVIEW = 40
"""Windows after which the decision is tried again: lengths and numbers of requests change as runs learn."""
MARGIN = 1.03
"""Swap must be this much faster; otherwise mixed, which also keeps runs from waiting for each other."""


@dataclass
class Window:
    """Work done in one mode."""

    tokens: int = 0
    seconds: float = 0.0
    requests: int = 0


@dataclass
class AutoBatching:
    """Alternates the modes for a few windows, keeps the one with more tokens per second, and says why.

    A window ends after `window_requests` finished requests and `window_seconds` of engine time.
    """

    window_requests: int = 8
    window_seconds: float = 0.25
    mixed: bool = True
    decided: bool = False
    reason: str = "not measured yet"
    _trials: dict[bool, list[Window]] = field(default_factory=lambda: {True: [], False: []})
    _window: Window = field(default_factory=Window)
    _since: int = 0

    def observe(self, tokens: int, seconds: float, finished: int, runs: int) -> None:
        """After an engine step: tokens of requests that finished, engine seconds, and how many runs are waiting or
        served. With a single run the modes are the same, and nothing is learned."""
        if runs < 2:
            return
        window = self._window
        window.tokens, window.seconds = window.tokens + tokens, window.seconds + seconds
        window.requests += finished
        if window.requests >= self.window_requests and window.seconds >= self.window_seconds:
            self._window = Window()
            self._close(window)

    def _close(self, window: Window) -> None:
        if self.decided:
            self._since += 1
            if self._since >= REVIEW:
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
