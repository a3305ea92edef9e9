"""layersweep: which transformer layers carry the gains of RL post-training?

A sweep trains each layer of a model alone, trains the whole model, and tells what share of the whole run's gain each
layer gets by itself. From Python:

    import layersweep

    spec = layersweep.load_spec("sweep.yaml", {"training.steps": 50, "seeds": [0, 1]})
    sweep = layersweep.run(spec)  # or start(spec), to follow it or to await it
    print(sweep.contribution()[["selection", "contribution", "contribution_low", "contribution_high"]])

`layersweep schema` prints every field of a spec; `layersweep --help` shows the same functions as commands.
Importing this module imports none of torch, vLLM, DeepSpeed, Ray and pandas; functions import what they need.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from layersweep.analysis import compose, dissect, probe
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.spec_source import SpecSource, load_spec

if TYPE_CHECKING:
    import pandas as pd

    from layersweep.orchestrator.execution.background import SweepProcess
    from layersweep.orchestrator.execution.progress import ProgressEvent
    from layersweep.orchestrator.planning.plan import Plan
    from layersweep.orchestrator.spec.sweep_spec import SweepSpec

__all__ = ["RunningSweep", "SpecError", "Sweep", "compare", "compose", "dissect", "export", "load_spec", "plan",
           "probe", "resume", "run", "start"]  # fmt: skip


class Sweep:
    """A sweep's folder: its tables, its spec, its trained weights. It may be finished or still running.

    Args:
        folder: OUTPUT/NAME, a folder or an fsspec URI such as s3://bucket/sweeps/demo.

    Attributes:
        folder: as given.
        outcome: `completed`, `failed` (some runs failed) or `stopped`; None where the sweep was only opened.
    """

    def __init__(self, folder: "str | os.PathLike[str]", outcome: str | None = None):
        self.folder, self.outcome = os.fspath(folder).rstrip("/"), outcome

    def __fspath__(self) -> str:
        return self.folder

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.folder}{f', {self.outcome}' if self.outcome else ''}>"

    @property
    def spec(self) -> "SweepSpec":
        """The spec as it was resolved.

        Raises:
            SpecError: there is no sweep in the folder.
        """
        return load_spec(f"{self.folder}/sweep.yaml")

    def contribution(self) -> "pd.DataFrame":
        """contribution.parquet: a row per selection (base, full, layer-00, ...), with C and its 95 % interval.

        Raises:
            FileNotFoundError: the sweep has not written it yet.
        """
        return self._table("contribution")

    def by_suite(self) -> "pd.DataFrame":
        """contribution_by_suite.parquet: score, gain and C of each selection on every suite, in domain and out of it.

        Raises:
            FileNotFoundError: the sweep has not written it yet.
        """
        return self._table("contribution_by_suite")

    def by_base_success(self) -> "pd.DataFrame":
        """contribution_by_base_success.parquet: gain and C on prompts that the base never, sometimes, always solves.

        Raises:
            FileNotFoundError: there is no report yet, or the base has one sample to a prompt.
        """
        return self._table("contribution_by_base_success")

    def scores(self) -> "pd.DataFrame":
        """scores.parquet: a row per evaluated response.

        Raises:
            FileNotFoundError: the sweep has not written it yet.
        """
        return self._table("scores")

    def steps(self) -> "pd.DataFrame":
        """steps.parquet: a row per run and training step, with rewards, losses, norms and seconds.

        Raises:
            FileNotFoundError: the sweep has not written it yet.
        """
        return self._table("steps")

    def responses(self, *runs: str, step: int | None = None) -> "pd.DataFrame":
        """Kept responses with their scores, a row each, by prompt: which are kept says `responses` of the spec.

        Args:
            runs: selections such as `layer-07`; none is all.
            step: training steps done; None is each run's last evaluation.

        Raises:
            SpecError: none is kept.
        """
        from layersweep.orchestrator.commands.responses import find_responses

        return find_responses(self.folder, runs, step=step)

    def rescore(self, overrides: Mapping[str, Any] | None = None) -> "Sweep":
        """Score the kept responses once more, by the tasks' code as it is now; returns the folder of the new tables.

        Args:
            overrides: fields of the tasks by dotted path, such as `{"task.cpu_seconds": 5}`.

        Raises:
            SpecError: no response is kept, or it cannot be scored without playing an episode.
        """
        from layersweep.orchestrator.commands.rescore import rescore

        return Sweep(rescore(self.folder, overrides).folder)

    def report(self) -> list[str]:
        """Write report.html and its PNGs into the sweep's folder; returns their paths.

        Raises:
            SpecError: there is no contribution table in the folder.
        """
        from layersweep.orchestrator.report import write_report

        return [str(path) for path in write_report(self.folder)]

    def _table(self, name: str) -> "pd.DataFrame":
        from layersweep.workers.storage.files import read_table

        return read_table(f"{self.folder}/{name}.parquet")


class RunningSweep(Sweep):
    """A sweep that runs in a process of its own; made by `start` and `resume`.

    Iterate over it, with `for` or `async for`, for a `ProgressEvent` per completed step, change of a run's status, and
    notice; `await` it, or call `wait`, for the end. It goes on while nothing waits, and ends with checkpoints when this
    process ends. The methods of `Sweep` work all the while.

    Example:
        sweep = layersweep.start("sweep.yaml")
        for event in sweep:
            print(event)  # [12/210] layer-03-seed0 training, step 2 of 30, reward 0.341
        print(sweep.outcome)
    """

    def __init__(self, folder: str, process: "SweepProcess"):
        super().__init__(folder)
        self._process = process

    def __iter__(self) -> "Iterator[ProgressEvent]":
        yield from self._process.events()
        self.wait()

    async def __aiter__(self) -> "AsyncIterator[ProgressEvent]":
        events = self._process.events()
        while (event := await asyncio.to_thread(next, events, None)) is not None:
            yield event
        self.wait()

    def __await__(self) -> Generator[Any, None, "RunningSweep"]:
        return asyncio.to_thread(self.wait).__await__()

    def wait(self) -> "RunningSweep":
        """Wait for the end, and set `outcome`. Ctrl-C has the sweep write checkpoints and end first.

        Raises:
            SpecError: the sweep was refused: what its spec refers to is not there, or cannot be placed.
            RuntimeError: its process died; the text has the end of its log.
        """
        self.outcome = self._process.wait()
        return self

    def stop(self) -> None:
        """Ask the sweep to write checkpoints and end; asked a second time, it ends at once."""
        self._process.stop()

    def log(self) -> str:
        """Text that the sweep's driver has printed so far."""
        return self._process.log()


def plan(spec: SpecSource) -> "Plan":
    """Work out what a sweep would do, and start nothing: runs, model, sizes, numbers of responses.

    Raises:
        SpecError: what the spec refers to (model, data, layers, output) is not there.
    """
    from layersweep.orchestrator.planning.checks import make_plan

    return make_plan(load_spec(spec), fetch=False)


def run(spec: SpecSource, *, address: str | None = None, fresh: bool = False) -> Sweep:
    """Run a sweep to its end, with its progress on standard error and its table on standard output.

    Ctrl-C once writes checkpoints and stops (`outcome` is then "stopped"); `resume` goes on. Where an event loop is
    running already, as in a notebook, the sweep runs in a process of its own (see `start`), and its events are printed.

    Args:
        spec: a loaded spec, a YAML file, or a dict of fields.
        address: a running Ray cluster, such as `auto` or `host:6379`; None starts Ray on this machine for the sweep.
        fresh: discard what an earlier run of this sweep left in its folder.

    Raises:
        SpecError: the spec is bad, what it refers to is not there, or its folder holds a sweep already.
    """
    if threading.current_thread() is not threading.main_thread() or _loop_is_running():
        running = start(spec, address=address, fresh=fresh)
        for event in running:
            print(event)
        return running
    from layersweep.orchestrator.execution import factorial
    from layersweep.orchestrator.execution.launch import OUTCOME

    loaded = load_spec(spec)
    code = factorial.run(loaded, address, fresh)
    return Sweep(_absolute(loaded.folder), OUTCOME[code])


def start(spec: SpecSource, *, address: str | None = None, fresh: bool = False) -> RunningSweep:
    """Start a sweep in a process of its own and return at once; arguments and errors as for `run`.

    Errors that need more than the spec itself are raised by `wait`, `await` and iteration.
    """
    from layersweep.orchestrator.execution.background import SweepProcess

    loaded = load_spec(spec)
    request = {"spec": loaded.model_dump(mode="json"), "address": address, "fresh": fresh}
    return RunningSweep(_absolute(loaded.folder), SweepProcess(request))


def resume(
    sweep: "str | os.PathLike[str]", overrides: Mapping[str, Any] | None = None, *, address: str | None = None
) -> RunningSweep:
    """Go on with a sweep after a crash or a stop, or with more layers, seeds or steps; returns at once, like `start`.

    Args:
        sweep: its folder or URI.
        overrides: what is added, by dotted path, such as `{"training.steps": 100}`.
        address: a running Ray cluster; None starts Ray on this machine for the sweep.

    Raises:
        SpecError: (from `wait`, `await`, iteration) there is no such sweep, or it would become another experiment.
    """
    from layersweep.orchestrator.execution.background import SweepProcess

    folder = _absolute(os.fspath(sweep).rstrip("/"))
    request = {"sweep": folder, "spec_file": None, "overrides": dict(overrides or {}), "address": address}
    return RunningSweep(folder, SweepProcess(request))


def compare(*tables: "str | os.PathLike[str]", top: int = 5, noise: float | None = None) -> "pd.DataFrame":
    """Tell whether the layer rankings of two or more sweeps agree: a row per pair, with observed and noise-corrected
    rank correlation, its 95 % interval, and a verdict.

    Args:
        tables: sweeps' folders, contribution tables in parquet, or CSV files with columns `layer` and `contribution`;
            the folder of a spec with factors stands for all of its sweeps.
        top: how many of the best layers to hold against each other.
        noise: standard deviation of the contribution, for tables without intervals.

    Raises:
        SpecError: fewer than two tables, or one that is not there or holds no profile.
    """
    from layersweep.orchestrator.commands.compare import load_profiles, sweeps_in
    from layersweep.orchestrator.statistics.profile_agreement import compare_all

    return compare_all(load_profiles(sweeps_in([os.fspath(table) for table in tables]), noise), top)


def export(
    sweep: "str | os.PathLike[str]", selection: str, target: "str | os.PathLike[str]", *, seed: int | None = None
) -> list[str]:
    """Merge a run's weights into its base model: a new folder that transformers and vLLM load; returns its files.

    Args:
        sweep: its folder or URI.
        selection: `full`, `layer-07`, `layers-best-5`, ...
        target: folder to make.
        seed: of the run, where several were trained.

    Raises:
        SpecError: no such sweep or run, no seed where there are several, or a target that is not empty.
    """
    from layersweep.orchestrator.commands.export import export

    return export(os.fspath(sweep), selection, os.fspath(target), seed)


def _absolute(folder: str) -> str:
    from layersweep.orchestrator.spec.folders import absolute_folder

    return absolute_folder(folder)


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
