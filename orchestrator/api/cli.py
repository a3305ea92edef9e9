"""The `layersweep` command: the functions of `layersweep`, printed.

Exit codes: 0 done, 1 some run failed, 2 bad input, 3 stopped before the end; 141 where the reader of its output is
gone. Commands import what they need when they run, so that help and errors come at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import layersweep
from layersweep.orchestrator.spec.errors import REFUSED, SpecError
from layersweep.orchestrator.spec.overrides import PATH, parse_overrides
from layersweep.workers.storage.files import NoStore

if TYPE_CHECKING:
    from layersweep.orchestrator.spec.sweep_spec import SweepSpec

DEMO = str(files("layersweep.deploy") / "sweeps" / "demo.yaml")


def main(argv: list[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if "words" in args:  # argparse takes the words after an option for strangers
        args.words += [word for word in rest if _is_override(word)]
        rest = [word for word in rest if not _is_override(word)]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if args.command in (_run, _resume, _serve):
        from layersweep.orchestrator.execution.own_session import in_own_session, stoppable

        # Called by other code, as by a test, it stays in that process.
        sweep = partial(stoppable, partial(_carry_out, args))
        return in_own_session(sweep) if argv is None and getattr(args, "address", None) is None else sweep()
    try:
        return _carry_out(args)
    except KeyboardInterrupt:
        return 130


def _carry_out(args: argparse.Namespace) -> int:
    """Run a command; errors that the user can fix are printed. Returns the exit code."""
    try:
        code = args.command(args)
        sys.stdout.flush()
        return code
    except SpecError as error:
        for problem in error.problems:
            print(f"layersweep: {problem}", file=sys.stderr)
        return REFUSED
    except NoStore as error:
        print(f"layersweep: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # `layersweep schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layersweep",
        description="Which transformer layers carry the gains of RL post-training? One YAML file in, one table out: "
        "the contribution of every layer, with its error.",
        epilog="Start with `layersweep run` (the demo), then copy its spec: `layersweep schema` explains every field.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    plan = add("plan", _plan, "Show what a sweep would do: runs, sizes, bytes per push. Starts nothing.")
    plan.add_argument("--cluster", metavar="SHAPE", help="also place it on GPUs, such as 8xH200 or 4x8xH100 (nodes x "
                      "GPUs x kind): schedule, hours, memory, network")  # fmt: skip
    data = add("data", _data, "Show prompts as the model sees them, their lengths in tokens, and what the rows' own "
               "answers get as reward.")  # fmt: skip
    run = add("run", _run, "Run a sweep on this machine's Ray, or on a running cluster.")
    run.add_argument("--address", help="of a running Ray cluster, such as auto or host:6379 (default: start Ray here)")
    run.add_argument("--fresh", action="store_true", help="discard what an earlier run of this sweep left")
    submit = add("submit", _submit, "Run a sweep on a cluster, as a Ray job that goes on without this terminal.")
    earlier = submit.add_mutually_exclusive_group()
    earlier.add_argument("--resume", action="store_true", help="go on with what an earlier run of this sweep left")
    earlier.add_argument("--fresh", action="store_true", help="discard it")
    submit.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="an environment variable of "
                        "the sweep; without a value the one it has here. The dashboard shows it")  # fmt: skip
    submit.add_argument("--working-dir", metavar="DIR", help="take this folder along, and run in it: data, or an "
                        "algorithm of your own")  # fmt: skip
    then = submit.add_mutually_exclusive_group()
    then.add_argument("--follow", action="store_true", help="print what the driver prints, until it ends")
    then.add_argument("--detach", action="store_true", help="return once the sweep has begun (the default)")
    status = add("status", _status, "Tell how a sweep stands.")
    status.add_argument("--watch", action="store_true", help="until it ends")
    stop = add("stop", _stop, "Have a submitted sweep write its checkpoints and end.")
    logs = add("logs", _logs, "Print what a submitted sweep's driver prints.")
    logs.add_argument("--follow", action="store_true", help="until it ends")
    pull = add("pull", _pull, "Copy a sweep's contribution table here, complete or not.")
    pull.add_argument("-o", "--output", default="contribution.parquet", metavar="FILE", help="(default: %(default)s)")
    for command in (status, pull):
        command.add_argument("sweep", help="its folder or URI (OUTPUT/NAME), or with --address its name")
    for command in (stop, logs):
        command.add_argument("sweep", help="its name")
    for command, required in ((submit, True), (status, False), (stop, True), (logs, True), (pull, False)):
        command.add_argument("--address", required=required, metavar="URL", help="of the cluster's dashboard, such as "
                             "http://head:8265")  # fmt: skip
    probe = add("probe", _probe, "Measure every layer of the untrained base on one rollout batch per seed (gradients, "
                "first-order gain, loss without the layer), and hold it against C once that is there.")  # fmt: skip
    probe.add_argument("--screen", type=_count, metavar="STEPS", help="also train each selection of the sweep for so "
                       "many optimizer steps on that batch, without rollouts of its own, and score it")  # fmt: skip
    probe.add_argument("--screen-prompts", type=_count, metavar="N", help="score it on N prompts of each suite at most "
                       "(default: all)")  # fmt: skip
    probe.add_argument("--address", help="of a running Ray cluster (default: start Ray here)")
    resume = add("resume", _resume, "Go on with a sweep after a crash or a stop, or with layers, seeds or steps added.")
    resume.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME), or its spec")
    for command, default in ((plan, "the demo"), (data, "the demo"), (run, "the demo"), (submit, "the demo"),
                             (probe, "the demo"), (resume, "sweep.yaml in the folder")):  # fmt: skip
        command.add_argument("words", nargs="*", metavar="SPEC | FIELD=VALUE", help=f"YAML file (default: {default}), "
                             "and values that replace its own, such as training.steps=50 'seeds=[0,1]'")  # fmt: skip
    resume.add_argument("--address", help="of a running Ray cluster (default: start Ray here)")
    report = add("report", _report, "Write a finished or running sweep's report: one HTML file, and PNGs.")
    report.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME), or a contribution table in parquet")
    compare = add("compare", _compare, "Do the layer rankings agree? Observed and noise-corrected rank correlation.")
    compare.add_argument("tables", nargs="+", metavar="TABLE", help="path or URI of a sweep's folder, a parquet of "
                         "ours, or a CSV")  # fmt: skip
    compare.add_argument("-o", "--output", metavar="DIR", help="write compare.html and compare.png there")
    compare.add_argument("--top", type=_count, default=5, metavar="K", help="how many best layers to hold against "
                         "each other (default: 5)")  # fmt: skip
    compare.add_argument("--noise", type=float, metavar="SD", help="of the contribution, for tables without intervals")
    dissect = add("dissect", _dissect, "Take finished runs apart, without training: parts, ranks, largest entries, "
                  "multiples, layers of the full run, random changes of equal norm.")  # fmt: skip
    dissect.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    compose = add("compose", _compose, "Add up what separately trained runs changed, without training.")
    compose.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    compose.add_argument("--best", type=_count, default=0, metavar="K", help="the best 1, 2, ... K runs together")
    compose.add_argument("--pairs", type=_count, default=0, metavar="K", help="all pairs of the best K runs")
    compose.add_argument("--greedy", type=_count, default=0, metavar="K", help="grow a stack to K runs by the one that "
                         "raises its score on the selection split most")  # fmt: skip
    compose.add_argument("--strength", type=float, nargs="+", default=[1.0], metavar="FACTOR", help="of every run's "
                         "change (default: 1)")  # fmt: skip
    for command, words in ((dissect, "SELECTION | FIELD=VALUE"), (compose, "STACK | FIELD=VALUE")):
        command.add_argument(
            "words",
            nargs="*",
            metavar=words,
            help="such as layer-07 (default: all completed runs)"
            if command is dissect
            else "members joined by +, such as 1+5 or layer-01+layer-05-mlp",
        )
        command.add_argument("--address", help="of a running Ray cluster (default: start Ray here)")
    export = add("export", _export, "Merge a run's weights into its base: a folder that transformers and vLLM load "
                 "(of a float32 run with dtype=float32: vLLM's default is 16 bits).")  # fmt: skip
    export.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    export.add_argument("selection", help="such as layer-07, full, or a stack of composition.parquet")
    export.add_argument("-o", "--output", required=True, metavar="DIR", help="a new folder")
    export.add_argument("--seed", type=int, help="where several were trained")
    serve = add("serve", _serve, "Serve the base, finished runs and stacks of them as models of an OpenAI-compatible "
                "address, all from one engine.")  # fmt: skip
    serve.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    serve.add_argument("--run", action="append", default=[], metavar="RUN", help="such as layer-07 or layer-07-seed1; "
                       "several times for several (default: all that are completed)")  # fmt: skip
    serve.add_argument("--stack", action="append", default=[], metavar="STACK", help="members joined by +, such as 1+5 "
                       "or layer-01+layer-05-mlp, or the name of a stack that compose scored (default: all of "
                       "those)")  # fmt: skip
    serve.add_argument("--host", default="127.0.0.1", help="(default: %(default)s, this machine alone)")
    serve.add_argument("--port", type=int, default=8000, help="(default: %(default)s; 0 takes a free one)")
    serve.add_argument("--no-token", action="store_true", help="let requests in without the token that is else printed "
                       "at the start (LAYERSWEEP_TOKEN in the environment sets one)")  # fmt: skip
    serve.add_argument("words", nargs="*", metavar="FIELD=VALUE", help="fields of the spec that replace the sweep's "
                       "own, such as rollout.max_model_len=4096")  # fmt: skip
    responses = add("responses", _responses, "Print kept responses, prompt by prompt, of one run or several.")
    responses.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    responses.add_argument("--run", action="append", default=[], metavar="RUN", help="such as layer-07 or base; "
                           "several times to read runs side by side (default: all)")  # fmt: skip
    verdict = responses.add_mutually_exclusive_group()
    verdict.add_argument("--wrong", action="store_true", help="only wrong ones")
    verdict.add_argument("--right", action="store_true", help="only right ones")
    responses.add_argument("--truncated", action="store_true", help="only those cut at the token limit")
    responses.add_argument("--suite", help="only of this suite")
    responses.add_argument("--split", choices=("train", "selection", "final"), help="only of this split")
    responses.add_argument("--prompt", metavar="ID", help="only to this prompt")
    responses.add_argument("--seed", type=int, help="only of this seed")
    responses.add_argument("--step", type=int, help="training steps done (default: each run's last)")
    responses.add_argument("-n", "--limit", type=_count, default=10, metavar="N", help="prompts at most (default: 10)")
    rescore = add("rescore", _rescore, "Score the kept responses once more, by the tasks' code as it is now, without "
                  "generating anything: new tables in OUTPUT/NAME/rescored, beside the old ones.")  # fmt: skip
    rescore.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    rescore.add_argument("words", nargs="*", metavar="FIELD=VALUE", help="fields of the tasks that replace the sweep's "
                         "own, such as task.cpu_seconds=5")  # fmt: skip
    add("doctor", _doctor, "Tell what this machine can do, and what is missing.")
    schema = add("schema", _schema, "Explain every field of a spec.")
    what = schema.add_mutually_exclusive_group()
    what.add_argument("section", nargs="?", default="", help="a field to explain alone, such as training or task.data")
    what.add_argument("--json", action="store_true", help="print a JSON Schema, with which editors complete and check "
                      "a spec")  # fmt: skip
    return parser


def _count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _is_override(word: str) -> bool:
    return re.match(rf"{PATH}=", word) is not None


def _spec_and_overrides(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The spec file among a command's words, if there is one, and the values that replace its own.

    Raises:
        SpecError: two files, or an override of the wrong form.
    """
    spec_files = [word for word in words if not _is_override(word)]
    if len(spec_files) > 1:
        raise SpecError([f"{spec_files[1]}: a second spec beside {spec_files[0]}; a value is written FIELD=VALUE"])
    return next(iter(spec_files), None), parse_overrides(filter(_is_override, words))


def _spec(words: list[str]) -> "SweepSpec":
    path, overrides = _spec_and_overrides(words)
    return layersweep.load_spec(path or DEMO, overrides)


def _plan(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.show_plan import show_plan
    from layersweep.orchestrator.spec.factorial import sweeps_of

    overrides = _spec_and_overrides(args.words)[1]
    for spec in sweeps_of(_spec(args.words)):
        plan = layersweep.plan(spec)
        if args.cluster is None:
            show_plan(plan, overrides)
            continue
        from layersweep.orchestrator.commands.show_forecast import show_cluster_plan
        from layersweep.orchestrator.planning.cluster_forecast import plan_on
        from layersweep.orchestrator.planning.cluster_shape import parse_cluster

        forecast = plan_on(plan, parse_cluster(args.cluster))
        show_plan(plan, overrides, hours=False)
        show_cluster_plan(forecast)
    return 0


def _data(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.show_data import show_data
    from layersweep.orchestrator.planning.checks import check_sweep
    from layersweep.orchestrator.spec.factorial import sweeps_of

    for spec in sweeps_of(_spec(args.words)):
        show_data(check_sweep(spec, fetch=False, fetch_data=True))
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
    if spec.factors:
        raise SpecError(["factors: a job is one sweep; run them from here with `layersweep run SPEC --address ...`"])
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
    from layersweep.orchestrator.spec.factorial import folders_of

    folders = folders_of(args.sweep) if args.address is None else [args.sweep]
    fine = [show_status(SweepView(folder, args.address), args.watch) for folder in folders]
    return 0 if all(fine) else 1


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

    print(pull(SweepView(args.sweep, args.address), args.output))
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

    wanted = [word for word in args.words if not _is_override(word)]
    overrides = parse_overrides(filter(_is_override, args.words))
    return _scored(lambda: dissect(args.sweep, wanted, overrides, args.address))


def _compose(args: argparse.Namespace) -> int:
    from layersweep.orchestrator.commands.compose import Wanted, compose

    given = tuple(_members(word) for word in args.words if not _is_override(word))
    wanted = Wanted(given, args.best, args.pairs, args.greedy, tuple(args.strength))
    overrides = parse_overrides(filter(_is_override, args.words))
    return _scored(lambda: compose(args.sweep, wanted, overrides, args.address))


def _members(stack: str) -> tuple[str, ...]:
    """The members of a stack such as 1+5 or layer-01+layer-05-mlp."""
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


if __name__ == "__main__":
    sys.exit(main())
