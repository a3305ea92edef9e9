"""Starting a sweep, and going on with one."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.remote.job_package import BEGUN
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.folders import absolute_folder, check_home
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.workers.storage.files import write_atomically
from layersweep.workers.storage.run_store import CorruptFile, remove_partial_files, runs_of

from .manifest import SweepManifest
from .own_session import STOPPED, check_interrupted
from .progress import Listener
from .sweep_folder import check_folder, clear
from .sweep_lock import check_owner, hold_lock
from .sweep_session import SweepSession

EXIT = {"completed": 0, "failed": 1, "stopped": STOPPED}
"""Exit codes by how a sweep ended."""
OUTCOME = {code: outcome for outcome, code in EXIT.items()}
"""How a sweep ended, by exit code."""


def run_sweep(spec: SweepSpec, address: str | None, fresh: bool, listen: Listener | None = None) -> int:
    """`layersweep run`: the exit code.

    Args:
        listen: called with every ProgressEvent, beside what is printed.

    Raises:
        SpecError: what the spec refers to is not there, or its folder has an earlier sweep in it.
    """
    plan = make_plan(spec)
    check_folder(plan.folder, fresh)
    check_owner(plan.folder)
    check_home()
    with SweepSession(address, [plan]) as session:
        return carry_out(plan, partial(begin_sweep, plan, fresh), session, listen)


def begin_sweep(plan: Plan, fresh: bool) -> SweepManifest:
    """Make the folder of a new sweep ready, by the driver that holds its lock.

    Raises:
        SpecError: another sweep has begun there in the meantime.
    """
    check_folder(plan.folder, fresh)  # once more, now that the sweep is ours
    if fresh:
        clear(plan.folder)
    write_spec(plan)
    return SweepManifest.begin(plan)


def resume_sweep(spec: SweepSpec, address: str | None, listen: Listener | None = None) -> int:
    """Go on with the sweep in a spec's folder: the exit code.

    Args:
        spec: as found by `find_sweep`.
        listen: called with every ProgressEvent, beside what is printed.

    Raises:
        SpecError: there is no such sweep, or it would become another experiment.
    """
    folder = spec.folder
    try:
        manifest = SweepManifest.load(folder)
    except CorruptFile as error:
        raise SpecError([f"{error}; the sweep cannot go on, start it again with `layersweep run --fresh`"]) from error
    except OSError as error:
        raise SpecError([f"{folder}: cannot be read now: {error}; nothing is lost, resume it once it can"]) from error
    if manifest is None:
        raise SpecError([f"{folder}: no sweep has begun there; start it with `layersweep run`"])
    plan = make_plan(spec)
    check_owner(folder)
    with SweepSession(address, [plan]) as session:
        return continue_sweep(plan, manifest, session, listen)


def find_sweep(sweep: str, spec: str | None, overrides: Mapping[str, Any] | None) -> tuple[str, SweepSpec]:
    """Return a sweep's folder, and the spec that it is to go on with, in that folder.

    Args:
        sweep: its folder or URI, or its spec file.
        spec: a spec file with what is added; None takes the folder's own sweep.yaml, or `sweep` where that is a file.
        overrides: values by dotted path that replace those of the spec.

    Raises:
        SpecError: there is no such spec, or it is another sweep's.
    """
    if sweep.endswith((".yaml", ".yml")):
        wanted = load_spec(spec or sweep, overrides)
        folder = absolute_folder(load_spec(sweep).folder)
    else:
        folder = absolute_folder(sweep.rstrip("/"))
        wanted = load_spec(spec or f"{folder}/sweep.yaml", overrides)
    output, _, name = folder.rpartition("/")
    if name != wanted.name:
        raise SpecError([f"name: {folder} holds the sweep {name!r}, the spec is of {wanted.name!r}; name both alike"])
    return folder, wanted.model_copy(update={"output": output})  # where it is now: it may have been moved


def continue_sweep(plan: Plan, manifest: SweepManifest, session: SweepSession, listen: Listener | None = None) -> int:
    """Do what a plan asks for and its sweep has not done yet: the exit code.

    Args:
        session: one of whose plans this is.
        listen: called with every ProgressEvent, beside what is printed.

    Raises:
        SpecError: the sweep would become another experiment.
    """
    folder = plan.folder
    check_home()
    if manifest.asks_no_more_than_done(plan):
        print(f"nothing to do: all of {folder} is done, see {folder}/contribution.parquet")
        return 0

    def begin() -> SweepManifest:
        manifest.update_spec(plan)
        remove_partial_files(folder, runs_of(folder))
        write_spec(plan)
        return manifest

    return carry_out(plan, begin, session, listen)


def carry_out(
    plan: Plan, begin: Callable[[], SweepManifest], session: SweepSession, listen: Listener | None = None
) -> int:
    """Run what is not done yet, on a Ray cluster or one started here; report and table at the end. The exit code.

    Args:
        begin: makes the sweep's folder ready, once it is clear that the cluster can carry the plan out.
        session: one of whose plans this is.
        listen: called with every ProgressEvent, beside what is printed.

    Raises:
        SpecError: the cluster can never place the plan's actors, or another driver has the sweep.
    """
    from layersweep.orchestrator.report import write_report
    from layersweep.orchestrator.report.terminal_table import show_table, without_driver

    from .progress import Progress

    again = f"`layersweep resume {plan.folder}` goes on from the last checkpoints"
    with session.connected(plan):
        from ray.exceptions import RayError

        from .driver import run_plan
        from .failures import RayLost, reason_of
        from .ray_nodes import wait_for_room

        wait_for_room(plan)
        with hold_lock(plan.folder):
            manifest = begin()
            check_interrupted()
            print(f"layersweep: {BEGUN} {plan.folder}", file=sys.stderr, flush=True)
            spared = round(sum(plan.steps(run) - plan.expected_steps(run) for run in plan.runs))
            progress = Progress([run.name for run in plan.runs], plan.spec.training.steps, listen=listen, spared=spared)
            try:
                outcome, table = run_plan(plan, manifest, progress, session)
            except (RayError, RayLost) as error:
                if not runs_of(plan.folder):  # a failed warm-up fails again unless the spec changes
                    again = (f"no run had begun: `layersweep resume {plan.folder}` tries once more, `layersweep run "
                             "--fresh` begins with a spec that you changed")  # fmt: skip
                print(f"layersweep: the sweep stopped: {reason_of(error)}; {again}", file=sys.stderr)
                return EXIT["failed"]
            except asyncio.CancelledError:
                print(f"layersweep: stopped at once; {again}", file=sys.stderr)
                return EXIT["stopped"]
            except OSError as error:  # a full disk, a store that does not answer
                print(f"layersweep: the sweep stopped: {plan.folder}: {error}; {again}", file=sys.stderr)
                return EXIT["failed"]
    show_table(without_driver(table))
    print(f"table: {plan.folder}/contribution.parquet")
    try:
        write_report(plan.folder)
        print(f"report: {plan.folder}/report.html")
    except OSError as error:
        print(f"layersweep: the report could not be written: {error}; once it can, `layersweep report {plan.folder}`",
              file=sys.stderr)  # fmt: skip
    if outcome != "completed":
        print(f"layersweep: {'some runs failed' if outcome == 'failed' else 'stopped'}; {again}", file=sys.stderr)
    return EXIT[outcome]


def write_spec(plan: Plan) -> None:
    """Write the resolved spec into the sweep's folder."""
    resolved = write_yaml(plan.spec.model_dump(mode="json"))
    write_atomically(f"{plan.folder}/sweep.yaml", lambda file: file.write(resolved.encode()))
