"""Sweeps of one spec with `factors`: one after the other, each a sweep like any other, and compared at the end.

    <output>/<name>/sweep.yaml              the spec with its factors
    <output>/<name>/<name>-<level>/         a sweep each
    <output>/<name>/first_rollouts/         the base's responses to first training batches, for all of them
    <output>/<name>/lock/                   the driver of all; each sweep has one of its own besides
    <output>/<name>/compare.html, .png      do their profiles agree?

What does not depend on the factors is computed once: where two sweeps have the same base, prompts and sampling, the
second takes over the base's scores, and its responses to the first training batch, which every run begins with. A sweep
that completes leaves Ray and its engines, loaded and checked, to the next one that needs the same.

Runs that fail leave the next sweeps alone. Where not even the base could be scored, model, task or engine are at fault,
and sweeps with the same base are left out: each would take as long to fail alike.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.engine_facts import engine_facts
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import sweeps_of
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.paths import with_absolute_paths
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.policies.selection import Selection, run_name
from layersweep.workers.storage import completions
from layersweep.workers.storage.files import find_files, read_bytes, resolve_uri, write_atomically
from layersweep.workers.storage.responses import FOLDER, PROMPT_FOLDER
from layersweep.workers.storage.run_store import RunStore

from .launch import EXIT, begin_sweep, carry_out, continue_sweep, find_sweep, resume_sweep, run_sweep
from .manifest import SweepManifest, model_files
from .progress import Listener
from .sweep_folder import check_folder, holds_sweep
from .sweep_lock import check_owner, hold_lock
from .sweep_session import SweepSession

SAMPLED_BY = ("max_response_tokens", "stop", "include_stop", "dtype")
"""Fields of `training` that the base's scores depend on."""


def run(spec: SweepSpec, address: str | None, fresh: bool, listen: Listener | None = None) -> int:
    """`layersweep run`: the exit code; of several sweeps, which are compared at the end, that of the worst.

    Args, Raises: as for `run_sweep`; of several, all are checked before the first begins.
    """
    if not spec.factors:
        return run_sweep(spec, address, fresh, listen)
    spec = with_absolute_paths(spec)
    plans = _plans(sweeps_of(spec))
    if holds_sweep(spec.folder):
        raise SpecError([f"name: {spec.folder} holds a sweep without factors; choose another name"])
    for plan in plans:
        check_folder(plan.folder, fresh)
        check_owner(plan.folder)
    with hold_lock(spec.folder):
        _write_spec(spec)
        return _carry_out(spec.folder, plans, address, listen, fresh)


def resume(
    sweep: str,
    spec: str | None,
    address: str | None,
    overrides: Mapping[str, Any] | None = None,
    listen: Listener | None = None,
) -> int:
    """`layersweep resume`: the exit code; of several sweeps, those that have not begun are started.

    Args:
        sweep, spec, overrides: as for `find_sweep`.
        listen: called with every ProgressEvent, beside what is printed.

    Raises:
        SpecError: there is no such sweep, or one would become another experiment.
    """
    folder, wanted = find_sweep(sweep, spec, overrides)
    if not wanted.factors:
        return resume_sweep(wanted, address, listen)
    sweeps = sweeps_of(wanted)
    begun = {one.name for one in sweeps if SweepManifest.load(one.folder)}
    if not begun:
        raise SpecError([f"{folder}: no sweep has begun there; start them with `layersweep run`"])
    if spec is None:  # what has begun knows where its files are, whatever the present working folder
        sweeps = [
            load_spec(f"{one.folder}/sweep.yaml", overrides).model_copy(update={"output": folder})
            if one.name in begun
            else one
            for one in sweeps
        ]
    plans = _plans(sweeps)
    for plan in plans:
        check_owner(plan.folder)
    with hold_lock(folder):
        _write_spec(with_absolute_paths(wanted))
        return _carry_out(folder, plans, address, listen, fresh=False)


def _plans(sweeps: Sequence[SweepSpec]) -> list[Plan]:
    """Plan all of them.

    Raises:
        SpecError: with every sweep's problems.
    """
    plans, problems = [], []
    for spec in sweeps:
        try:
            plans.append(make_plan(spec))
        except SpecError as error:
            problems += [f"{spec.name}: {problem}" for problem in error.problems]
    if problems:
        raise SpecError(problems)
    return plans


def _carry_out(folder: str, plans: Sequence[Plan], address: str | None, listen: Listener | None, fresh: bool) -> int:
    plans = [replace(plan, first_rollouts=first_rollouts(folder, plan)) for plan in plans]
    with SweepSession(address, plans) as session:
        codes = _in_turn(folder, plans, session, listen, fresh)
    if EXIT["stopped"] not in codes:
        _compare(folder, plans)
    return max(codes)


def _in_turn(
    folder: str, plans: Sequence[Plan], session: SweepSession, listen: Listener | None, fresh: bool
) -> list[int]:
    """Carry sweeps out until one is stopped: the exit codes of those that began."""
    codes = []
    again = f"`layersweep resume {folder}` goes on"
    for number, plan in enumerate(plans):
        which = f"sweep {number + 1} of {len(plans)}"
        twin = next((other for other in plans[:number] if same_base(other, plan)), None)
        if twin and not _base_is_scored(twin):
            print(f"layersweep: {which}, {plan.spec.name}, is left out: {twin.spec.name} has the same base and could "
                  f"not score it; once it can, {again}", file=sys.stderr, flush=True)  # fmt: skip
            continue
        print(f"layersweep: {which}, {plan.spec.name}", file=sys.stderr, flush=True)
        if not fresh and (manifest := SweepManifest.load(plan.folder)):
            codes.append(continue_sweep(plan, manifest, session, listen))
        else:
            codes.append(carry_out(plan, partial(_begin, plan, twin, fresh), session, listen))
        if codes[-1] == EXIT["stopped"]:
            print(f"layersweep: stopped in {which}; {again}", file=sys.stderr)
            break
    return codes


def _base_store(plan: Plan) -> RunStore:
    return RunStore(plan.folder, run_name(Selection.base().name, plan.spec.seeds[0]))


def _base_is_scored(plan: Plan) -> bool:
    """Tell whether a sweep that has ended could score its base."""
    return _base_store(plan).metadata().get("status") == "completed"


def _begin(plan: Plan, twin: Plan | None, fresh: bool) -> SweepManifest:
    manifest = begin_sweep(plan, fresh)
    if twin:
        take_over_base(twin, plan)
    return manifest


def same_base(one: Plan, other: Plan) -> bool:
    """Tell whether two sweeps score the same base on the same prompts in the same way."""
    return _base_facts(one) == _base_facts(other)


def _base_facts(plan: Plan) -> tuple[Any, ...]:
    spec = plan.spec.model_dump(mode="json")
    sections = [spec[name] for name in ("model", "task", "evaluation", "rollout", "responses")]
    sampled = {name: spec["training"][name] for name in SAMPLED_BY}
    return *sections, sampled, spec["seeds"][0], spec["resources"]["engine"]["gpus"], plan.fingerprints, plan.code


def first_rollouts(folder: str, plan: Plan) -> completions.CompletionStore:
    """Return where a sweep shares the base's first batches with the others in the folder of a spec with factors."""
    engine = json.dumps(engine_facts(plan) | {"files": model_files(plan.spec)}, sort_keys=True)
    return completions.CompletionStore(f"{folder}/{completions.FOLDER}", engine, 1 + plan.spec.rollout.staleness)


def take_over_base(source: Plan, target: Plan) -> None:
    """Copy the base's scores and kept responses from one sweep's folder to another's that has begun."""
    scored, copy = _base_store(source), _base_store(target)
    for (step, split, suite), frame in scored.scores():
        copy.write_scores(step, split, suite, frame)
    filesystem, folder = resolve_uri(source.folder)
    for kept in (f"{FOLDER}/run={scored.run}", PROMPT_FOLDER):
        for path in find_files(filesystem, f"{folder}/{kept}"):
            content = filesystem.cat_file(f"{folder}/{kept}/{path}")
            write_atomically(f"{target.folder}/{kept}/{path}", lambda file, content=content: file.write(content))


def _compare(folder: str, plans: Sequence[Plan]) -> None:
    """Print whether the profiles agree, and write the page; say so where there is nothing to compare."""
    from layersweep.orchestrator.commands.compare import compare_tables

    tables = [plan.folder for plan in plans if read_bytes(f"{plan.folder}/contribution.parquet") is not None]
    try:
        for path in compare_tables(tables, 5, None, folder):
            print(path)
    except SpecError as error:
        print(f"layersweep: no comparison: {'; '.join(error.problems)}", file=sys.stderr)


def _write_spec(spec: SweepSpec) -> None:
    text = write_yaml(spec.model_dump(mode="json"))
    write_atomically(f"{spec.folder}/sweep.yaml", lambda file: file.write(text.encode()))
