"""Ray's own metrics, which Prometheus scrapes from every node as `ray_layersweep_*`."""

from typing import TYPE_CHECKING, Any

from ray.util.metrics import Counter, Gauge

from layersweep.policies.selection import run_name
from layersweep.workers.storage.tables import PHASES

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("sweep", "run", "layer")


class Prometheus:
    """Gauges and counters with the labels sweep, run, and layer (`07`, or `full` and the like).

    Counters count what this process saw: a repeated step counts once, and a new process starts at zero, as
    Prometheus expects of counters.
    """

    def __init__(self, sweep: str):
        self.sweep = sweep
        self.last: dict[str, int] = {}
        self.failed: set[str] = set()
        self.reward = Gauge("layersweep_reward", "Mean reward of the last step's responses.", LABELS)
        self.tokens = Gauge("layersweep_tokens_per_second", "Response tokens per second of the last step.", LABELS)
        self.phase = Gauge("layersweep_phase_seconds", "Seconds of the last step by phase.", (*LABELS, "phase"))
        self.steps = Counter("layersweep_steps", "Steps that were finished.", LABELS)
        self.pushed = Counter("layersweep_pushed_bytes", "Weights sent from trainers to engines.", LABELS)
        # Of a selection over all its seeds; `run` is then the selection itself.
        self.score = Gauge("layersweep_score", "Mean score on the selection split.", LABELS)
        self.contribution = Gauge("layersweep_contribution", "Contribution of the selection so far.", LABELS)
        self.failures = Counter("layersweep_failures", "Selections of which a run failed.", LABELS)

    def step(self, run: dict[str, Any], row: dict[str, Any]) -> None:
        labels = self._labels(run, run_name(run["selection"], run["seed"]))
        seconds = {phase: row[f"{phase}_seconds"] for phase in PHASES}
        self.reward.set(row["reward_mean"], labels)
        self.tokens.set(row["tokens"] / max(1e-9, sum(seconds.values())), labels)
        for phase, spent in seconds.items():
            self.phase.set(spent, labels | {"phase": phase})
        if row["step"] > self.last.get(labels["run"], -1):
            self.last[labels["run"]] = row["step"]
            self.steps.inc(1, labels)
            if pushed := row.get("pushed_bytes"):  # an engine that was replaced may have the weights already
                self.pushed.inc(pushed, labels)

    def table(self, frame: "pd.DataFrame") -> None:
        for row in frame.to_dict("records"):
            labels = self._labels(row, row["selection"])
            for gauge, value in ((self.score, row["score"]), (self.contribution, row["contribution"])):
                if value == value:
                    gauge.set(value, labels)
            if row["status"] == "failed" and row["selection"] not in self.failed:
                self.failed.add(row["selection"])
                self.failures.inc(1, labels)

    def close(self) -> None:
        """Ray exports what was set last."""

    def _labels(self, facts: dict[str, Any], name: str) -> dict[str, str]:
        """Return the labels of a run, or of a selection over all its seeds.

        Args:
            facts: `selection`, `kind` and `layer` of it.
            name: the label `run`.
        """
        layer = f"{facts['layer']:02d}" if facts["kind"] == "layer" else facts["selection"]
        return {"sweep": self.sweep, "run": name, "layer": layer}
