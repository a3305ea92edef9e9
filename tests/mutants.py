"""Mutants: small faults in what runs a sweep, each of which a fast test must notice.

    python -m tests.mutants              # all, about ten seconds each; exit 1 if one survives
    python -m tests.mutants 3 17         # these, by number

Each is applied to a copy of the tree in a temporary folder, where the tests that concern it run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EXECUTION, TESTS = "orchestrator/execution", "tests/orchestrator/execution"
SECONDS = 300
"""Time limit of a run of tests, after which a mutant hangs, which kills it."""


class Mutant(NamedTuple):
    what: str
    file: str
    """Below orchestrator/execution."""
    old: str
    """Occurs once."""
    new: str
    tests: str
    """Modules below tests/orchestrator/execution, without test_."""


MUTANTS = [
    Mutant(
        "recovery: one retry too few",
        "run_recovery.py", "if self.failures > config.retries:", "if self.failures >= config.retries:",
        "run_controller",
    ),
    Mutant(
        "recovery: failures are never counted together",
        "run_recovery.py", "1 if step > self.max_step else", "1 if step >= self.max_step else", "run_controller",
    ),
    Mutant(
        "recovery: a new step does not forgive earlier failures",
        "run_recovery.py", "1 if step > self.max_step else self.failures + 1", "self.failures + 1", "run_controller",
    ),
    Mutant(
        "recovery: a lost first rollout is shared on",
        "run_recovery.py", "self.context.first_rollouts.pop(self.run.seed, None)", "pass", "run_controller",
    ),
    Mutant(
        "recovery: a hung rollout worker stays",
        "run_recovery.py", "self.context.actors.rollout_worker.restart()", "pass", "run_controller",
    ),
    Mutant(
        "engine slot: one replacement for every run that asks",
        "engine_slot.py", "if self.generation != failed:", "if False:", "health",
    ),
    Mutant(
        "engine slot: a replacement is taken for the same engine",
        "engine_slot.py", "engine, self.generation + 1", "engine, self.generation", "health",
    ),
    Mutant(
        "engine slot: the failed engine is not ended",
        "engine_slot.py", "            self.engine.kill()\n", "", "health",
    ),
    Mutant(
        "engine slot: calls reach a replacement that has not loaded its model",
        "engine_slot.py", "            try:\n                await self._start(engine)\n",
        "            self.engine = engine\n            try:\n                await self._start(engine)\n", "health",
    ),
    Mutant(
        "weights: the engine's generation is not compared",
        "weight_sync.py", "self.synced == (self.slot.generation, version)",
        "(self.synced is not None and self.synced[1] == version)", "run_controller",
    ),
    Mutant(
        "slots: one too many",
        "slots.py", "self._free(units) >= 0", "self._free(units) >= -1", "slots",
    ),
    Mutant(
        "slots: small requests overtake large ones",
        "slots.py", "blocked.update(*hold.choices)", "pass", "slots",
    ),
    Mutant(
        "slots: a grant that comes with a cancellation is kept",
        "slots.py", "# granted in the same moment\n                self.release()\n", "\n                pass\n",
        "slots",
    ),
    Mutant(
        "slots: released on exit though given up within",
        "slots.py", "    async def __aexit__(self, *_: object) -> None:\n        if self.units is not None:\n",
        "    async def __aexit__(self, *_: object) -> None:\n        if True:\n", "slots",
    ),
    Mutant(
        "timeouts: the longest call is not remembered",
        "failures.py", "self.longest[kind] = max(", "_ = max(", "failures",
    ),
    Mutant(
        "timeouts: no minimum",
        "failures.py", "max(self.minimum, TIMEOUT_FACTOR * self.longest.get(kind, self.minimum))",
        "TIMEOUT_FACTOR * self.longest.get(kind, self.minimum)", "failures",
    ),
    Mutant(
        "failures: an actor whose constructor raised is tried again",
        "failures.py", 'and not getattr(cause, "actor_init_failed", False)', "", "failures",
    ),
    Mutant(
        "failures: the sweep's files get one attempt more",
        "failures.py", "for delay in (*STORE_DELAYS, None):", "for delay in (*STORE_DELAYS, 60.0, None):", "failures",
    ),
    Mutant(
        "failures: files that are not there are waited for",
        "failures.py", "if delay is None or isinstance(cause, PERMANENT):", "if delay is None:", "failures",
    ),
    Mutant(
        "health: an engine that gets no work done stays",
        "health.py", "if stuck < self.timeout:", "if True:", "health",
    ),
    Mutant(
        "health: an engine is asked while it starts",
        "health.py", "            if slot.changing.locked():\n                continue\n", "", "health",
    ),
    Mutant(
        "health: an actor that starts is ended again and again",
        "health.py", "limit = self.timeout if answered else TIMEOUT_FACTOR * self.timeout", "limit = self.timeout",
        "health",
    ),
    Mutant(
        "health: a dead node is taken for alive",
        "health.py", 'node["NodeID"] == own_node and node["Alive"]', 'node["NodeID"] == own_node', "health",
    ),
    Mutant(
        "run: trainers that are out of step train on",
        "clients.py", "return set(steps) == {self.step}", "return True", "clients",
    ),
    Mutant(
        "run: the row of a step that was taken back is recorded",
        "run_controller.py", "self.step, self.unsynced, self.finished_step = restored.step, None, None",
        "self.step, self.finished_step = restored.step, None", "run_controller",
    ),
    Mutant(
        "run: a stop interrupts an update",
        "run_controller.py", "        if not unless():\n            await asyncio.wait({task})\n        raise\n",
        "        raise\n", "run_controller",
    ),
    Mutant(
        "run: a paused run keeps its slot",
        "run_controller.py", "            self.run_slot.release()\n", "", "search",
    ),
    Mutant(
        "run: the search waits for a run that has failed",
        "run_controller.py", "await self.context.halving.withdraw(self.name)", "pass", "search",
    ),
    Mutant(
        "run: checkpoints come one step late",
        "run_controller.py", "if self.step % self.context.plan", "if (self.step - 1) % self.context.plan",
        "run_controller",
    ),
    Mutant(
        "checks: one step more without reward",
        "step_checks.py", "if self.without_reward >= MAX_STEPS_WITHOUT_REWARD and",
        "if self.without_reward > MAX_STEPS_WITHOUT_REWARD and", "step_checks",
    ),
    Mutant(
        "checks: a mismatch that is not a number passes",
        "step_checks.py", "not mismatch <= self.limit:", "mismatch > self.limit:", "step_checks",
    ),
    Mutant(
        "sweeps: each fails once more to score the base that the first could not",
        "factorial.py", "if twin and not _base_is_scored(twin):", "if False:", "factorial",
    ),
    Mutant(
        "sweeps: another base is given up too",
        "factorial.py", "return _base_facts(one) == _base_facts(other)", "return True", "factorial",
    ),
    Mutant(
        "base: a failure fails nothing",
        "base_score.py", "self.failure = await score_or_say(", "await score_or_say(", "run_controller",
    ),
    Mutant(
        "decisions: layers that were pruned are finalists",
        "decisions.py", 'scored = table[(table["status"] == "completed") & ', "scored = table[", "decisions",
    ),
]  # fmt: skip


def main() -> int:
    chosen = [int(number) for number in sys.argv[1:]] or range(1, len(MUTANTS) + 1)
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="layersweep-mutants-") as folder:
        tree = copy_tree(Path(folder))
        every = sorted({mutant.tests for mutant in MUTANTS})
        if run_tests(tree, every) != "SURVIVED":
            print("the tests fail without a mutant")
            return 2
        for number in chosen:
            mutant = MUTANTS[number - 1]
            path = tree / EXECUTION / mutant.file
            original = path.read_text()
            assert original.count(mutant.old) == 1, f"{number}: {mutant.old!r} does not occur once in {mutant.file}"
            path.write_text(original.replace(mutant.old, mutant.new))
            verdict = run_tests(tree, [mutant.tests])
            path.write_text(original)
            survivors += verdict == "SURVIVED"
            print(f"{number:2} {verdict:8} {mutant.what}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return min(survivors, 1)


def copy_tree(folder: Path) -> Path:
    """The tree in a folder where `import layersweep` takes it, before any installation."""
    shutil.copytree(
        ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__", "*.parquet")
    )
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    package = folder / "layersweep"
    shutil.copytree(folder / mapping.pop("layersweep"), package)
    for name, path in mapping.items():
        (package / name.removeprefix("layersweep.")).symlink_to(folder / path)
    return folder


def run_tests(tree: Path, tests: list[str]) -> str:
    """Run the fast ones of these test modules. Returns `killed` where one fails, `hangs`, or `SURVIVED`."""
    files = [f"{TESTS}/test_{name}.py" for name in tests]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not long"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "hangs"
    return "killed" if done.returncode else "SURVIVED"


if __name__ == "__main__":
    sys.exit(main())
