"""The subcommands of `layersweep`: each calls a function of the package, prints what it gives and returns an exit code.

They import what they need when they run, so that help and errors come at once.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import layersweep
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.overrides import is_override, parse_overrides

if TYPE_CHECKING:
    from layersweep.orchestrator.spec.sweep_spec import SweepSpec

DEMO = str(files("layersweep.deploy") / "sweeps" / "demo.yaml")


def _spec_and_overrides(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Return the spec file among a command's words, if there is one, and the values that replace its own.

    Raises:
        SpecError: two files, or an override of the wrong form.
    """
    # What looks like an override of the wrong form is one, unless it is a file's name.
    values = [word for word in words if is_override(word) or ("=" in word and not os.path.exists(word))]
    spec_files = [word for word in words if word not in values]
    if len(spec_files) > 1:
        raise SpecError([f"{spec_files[1]}: a second spec beside {spec_files[0]}; a value is written FIELD=VALUE"])
    return next(iter(spec_files), None), parse_overrides(values)


def _spec(words: list[str]) -> "SweepSpec":
    path, overrides = _spec_and_overrides(words)
    return layersweep.load_spec(path or DEMO, overrides)


def _plan(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.show_plan import show_plan
    from layersweep.orchestrator.spec.factorial import sweeps_of

    overrides = _spec_and_overrides(args.words)[1]
    for number, spec in enumerate(sweeps_of(_spec(args.words))):
        plan = layersweep.plan(spec)
        overrides = {} if number else overrides  # those of all sweeps are said once
        if args.cluster is None:
            show_plan(plan, overrides)
            continue
        from layersweep.orchestrator.commands.show_forecast import show_cluster_plan, show_split
        from layersweep.orchestrator.planning.cluster_forecast import plan_on
        from layersweep.orchestrator.planning.cluster_shape import parse_cluster
        from layersweep.orchestrator.planning.split_search import fastest_split

        forecast = plan_on(plan, parse_cluster(args.cluster))
        show_plan(plan, overrides, hours=False)
        show_cluster_plan(forecast)
        show_split(forecast, fastest_split(forecast))
    return 0


def _data(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.show_data import show_data
    from layersweep.orchestrator.spec.factorial import sweeps_of

    if problems := [problem for spec in sweeps_of(_spec(args.words)) for problem in show_data(spec)]:
        raise SpecError(list(dict.fromkeys(problems)))
    return 0


def _run(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.execution.launch import EXIT

    return EXIT[layersweep.run(_spec(args.words), address=args.address, fresh=args.fresh).outcome]


def _resume(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.execution.factorial import resume

    spec, overrides = _spec_and_overrides(args.words)
    return resume(args.sweep, spec, args.address, overrides)


def _submit(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.remote.ray_jobs import Cluster
    from layersweep.orchestrator.spec.paths import with_absolute_paths

    spec = with_absolute_paths(_spec(args.words), taken_along=args.working_dir)
    cluster = Cluster(args.address)
    job = cluster.submit(spec, args.resume, args.fresh, args.env, args.working_dir)
    print(f"submitted as {job.id}, output {job.folder}", flush=True)
    if args.follow:
        job = cluster.follow(job)
        return 0 if job.status == "SUCCEEDED" else job.exit_code or 1
    job = cluster.wait_until_begun(job)
    if job.over and not cluster.has_begun(job):
        print(cluster.last_words(job), file=sys.stdout if job.status == "SUCCEEDED" else sys.stderr)
        return 0 if job.status == "SUCCEEDED" else job.exit_code or 1
    if not job.over and not cluster.has_begun(job):
        print(f"{job.id}: {job.status.lower()}, not begun yet; it goes on without this terminal", file=sys.stderr)
    for command in ("status --watch", "logs --follow", "pull", "stop"):
        print(f"  layersweep {command} {spec.name} --address {args.address}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.status import show_status
    from layersweep.orchestrator.remote.sweep_view import SweepView

    return 0 if show_status(SweepView(args.sweep, args.address), args.watch) else 1


def _stop(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.remote.ray_jobs import Cluster

    cluster = Cluster(args.address)
    job = cluster.find(args.sweep)
    if cluster.stop(job):
        print(f"{job.id}: asked to end; it writes its checkpoints first", flush=True)
    print(f"{job.id}: {cluster.wait(job).status.lower()}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.remote.ray_jobs import Cluster

    cluster = Cluster(args.address)
    job = cluster.find(args.sweep)
    if args.follow:
        cluster.follow(job)
    else:
        print(cluster.logs(job), end="")
    return 0


def _pull(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.status import pull
    from layersweep.orchestrator.remote.sweep_view import SweepView

    for line in pull(SweepView(args.sweep, args.address), args.output):
        print(line)
    return 0


def _report(args: argparse.Namespace) -> int:
    for path in layersweep.Sweep(args.sweep).report():
        print(path)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.compare import compare_tables

    for path in compare_tables(args.tables, args.top, args.noise, args.output):
        print(path)
    return 0


def _export(args: argparse.Namespace) -> int:
    for path in layersweep.export(args.sweep, args.selection, args.output, seed=args.seed):
        print(path)
    return 0


def _responses(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.responses import find_responses, show_responses

    found = find_responses(
        args.sweep, args.run, suite=args.suite, split=args.split, step=args.step, seed=args.seed, prompt=args.prompt
    )
    show_responses(found, args.limit, True if args.right else False if args.wrong else None, args.truncated)
    return 0


def _rescore(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.rescore import rescore, show_rescored

    strange, overrides = _spec_and_overrides(args.words)
    if strange:
        raise SpecError([f"{strange}: a value is written FIELD=VALUE"])
    show_rescored(rescore(args.sweep, overrides))
    return 0


def _probe(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.probe import probe
    from layersweep.orchestrator.execution.probing import ProbeFailed
    from layersweep.orchestrator.execution.screening import Screening

    if args.screen_prompts and not args.screen:
        raise SpecError(["--screen-prompts: nothing is trained to be scored on them; give --screen STEPS too"])
    try:
        screening = Screening(args.screen, args.screen_prompts) if args.screen else None
        print(probe(_spec(args.words), args.address, screening))
    except ProbeFailed as error:
        print(f"layersweep: {error}", file=sys.stderr)
        return 1
    return 0


def _dissect(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.dissect import dissect

    wanted = [word for word in args.words if not is_override(word)]
    overrides = parse_overrides(filter(is_override, args.words))
    return _scored(lambda: dissect(args.sweep, wanted, overrides, args.address))


def _compose(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.compose import Wanted, compose

    given = tuple(_members(word) for word in args.words if not is_override(word))
    wanted = Wanted(given, args.best, args.pairs, args.greedy, tuple(args.strength))
    overrides = parse_overrides(filter(is_override, args.words))
    return _scored(lambda: compose(args.sweep, wanted, overrides, args.address))


def _members(stack: str) -> tuple[str, ...]:
    """Return the members of a stack such as 1+5 or layer-01+layer-05-mlp."""
    from layersweep.orchestrator.commands.compose import member_name

    return tuple(map(member_name, stack.split("+")))


def _serve(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.serve import Address, serve

    strange, overrides = _spec_and_overrides(args.words)
    if strange:
        raise SpecError([f"{strange}: a value is written FIELD=VALUE"])
    address = Address(args.host, args.port, token=not args.no_token)
    return serve(args.sweep, args.run, [_members(stack) for stack in args.stack], address, overrides)


def _scored(score: Callable[[], object]) -> int:
    """Print what scoring variants of finished runs gives; the exit code."""
    from layersweep.orchestrator.execution.variant_scoring import VariantsFailed

    try:
        print(score())
    except VariantsFailed as error:
        print(f"layersweep: {error}; what is scored is kept, the same command goes on", file=sys.stderr)
        return 1
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.doctor import examine

    return examine()


def _schema(args: argparse.Namespace) -> int:
    import json

    from layersweep.orchestrator.spec.schema_docs import json_schema, show_schema
    from layersweep.orchestrator.spec.sweep_spec import SweepSpec

    if args.json:
        print(json.dumps(json_schema(SweepSpec), indent=1))
    else:
        show_schema(SweepSpec, args.section)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "data": _data,
    "run": _run,
    "resume": _resume,
    "submit": _submit,
    "status": _status,
    "stop": _stop,
    "logs": _logs,
    "pull": _pull,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "responses": _responses,
    "rescore": _rescore,
    "probe": _probe,
    "dissect": _dissect,
    "compose": _compose,
    "serve": _serve,
    "doctor": _doctor,
    "schema": _schema,
}
"""Function of each subcommand, by its name."""
