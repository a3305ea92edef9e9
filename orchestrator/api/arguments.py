"""Arguments of the `layersweep` command and its subcommands."""

import argparse


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; what it parses names the subcommand as `command`."""
    parser = argparse.ArgumentParser(
        prog="layersweep",
        description="Which transformer layers carry the gains of RL post-training? One YAML file in, one table out: "
        "the contribution of every layer, with its error.",
        epilog="Start with `layersweep run` (the demo), then copy its spec: `layersweep schema` explains every field.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=name)
        return sub

    plan = add("plan", "Show what a sweep would do: runs, sizes, bytes per push. Starts nothing.")
    plan.add_argument("--cluster", metavar="SHAPE", help="also place it on GPUs, such as 8xH200 or 4x8xH100 (nodes x "
                      "GPUs x kind): schedule, hours, memory, network, and a faster split of them")  # fmt: skip
    data = add("data", "Show prompts as the model sees them, their lengths in tokens, and what the rows' own "
               "answers get as reward.")  # fmt: skip
    run = add("run", "Run a sweep on this machine's Ray, or on a running cluster.")
    run.add_argument("--address", help="of a running Ray cluster, such as auto or host:6379 (default: start Ray here)")
    run.add_argument("--fresh", action="store_true", help="discard what an earlier run of this sweep left")
    submit = add("submit", "Run a sweep on a cluster, as a Ray job that goes on without this terminal.")
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
    status = add("status", "Tell how a sweep stands.")
    status.add_argument("--watch", action="store_true", help="until it ends")
    stop = add("stop", "Have a submitted sweep write its checkpoints and end.")
    logs = add("logs", "Print what a submitted sweep's driver prints.")
    logs.add_argument("--follow", action="store_true", help="until it ends")
    pull = add("pull", "Copy a sweep's contribution table here, complete or not.")
    pull.add_argument("-o", "--output", default="contribution.parquet", metavar="FILE", help="(default: %(default)s)")
    for command in (status, pull):
        command.add_argument("sweep", help="its folder or URI (OUTPUT/NAME), or with --address its name")
    for command in (stop, logs):
        command.add_argument("sweep", help="its name")
    for command, required in ((submit, True), (status, False), (stop, True), (logs, True), (pull, False)):
        command.add_argument("--address", required=required, metavar="URL", help="of the cluster's dashboard, such as "
                             "http://head:8265")  # fmt: skip
    probe = add("probe", "Measure every layer of the untrained base on one rollout batch per seed (gradients, "
                "first-order gain, loss without the layer), and hold it against C once that is there.")  # fmt: skip
    probe.add_argument("--screen", type=_count, metavar="STEPS", help="also train each selection of the sweep for so "
                       "many optimizer steps on that batch, without rollouts of its own, and score it")  # fmt: skip
    probe.add_argument("--screen-prompts", type=_count, metavar="N", help="score it on N prompts of each suite at most "
                       "(default: all)")  # fmt: skip
    probe.add_argument("--address", help="of a running Ray cluster (default: start Ray here)")
    resume = add("resume", "Go on with a sweep after a crash or a stop, or with layers, seeds or steps added.")
    resume.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME), or its spec")
    for command, default in ((plan, "the demo"), (data, "the demo"), (run, "the demo"), (submit, "the demo"),
                             (probe, "the demo"), (resume, "sweep.yaml in the folder")):  # fmt: skip
        command.add_argument("words", nargs="*", metavar="SPEC | FIELD=VALUE", help=f"YAML file (default: {default}), "
                             "and values that replace its own, such as training.steps=50 'seeds=[0,1]'")  # fmt: skip
    resume.add_argument("--address", help="of a running Ray cluster (default: start Ray here)")
    report = add("report", "Write a finished or running sweep's report: one HTML file, and PNGs.")
    report.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME), or a contribution table in parquet")
    compare = add("compare", "Do the layer rankings agree? Observed and noise-corrected rank correlation.")
    compare.add_argument("tables", nargs="+", metavar="TABLE", help="path or URI of a sweep's folder, of that of "
                         "several (factors), of a parquet of ours, or of a CSV")  # fmt: skip
    compare.add_argument("-o", "--output", metavar="DIR", help="write compare.html and compare.png there")
    compare.add_argument("--top", type=_count, default=5, metavar="K", help="how many best layers to hold against "
                         "each other (default: 5)")  # fmt: skip
    compare.add_argument("--noise", type=float, metavar="SD", help="of the contribution, for tables without intervals")
    dissect = add("dissect", "Take finished runs apart, without training: parts, ranks, largest entries, "
                  "multiples, layers of the full run, random changes of equal norm.")  # fmt: skip
    dissect.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    compose = add("compose", "Add up what separately trained runs changed, without training.")
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
    export = add("export", "Merge a run's weights into its base: a folder that transformers and vLLM load "
                 "(of a float32 run with dtype=float32: vLLM's default is 16 bits).")  # fmt: skip
    export.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    export.add_argument("selection", help="such as layer-07, full, or a stack of composition.parquet")
    export.add_argument("-o", "--output", required=True, metavar="DIR", help="a new folder")
    export.add_argument("--seed", type=int, help="where several were trained")
    serve = add("serve", "Serve the base, finished runs and stacks of them as models of an OpenAI-compatible "
                "address, all from one engine.")  # fmt: skip
    serve.add_argument("sweep", help="the sweep's folder or URI (OUTPUT/NAME)")
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
    responses = add("responses", "Print kept responses, prompt by prompt, of one run or several.")
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
    rescore = add("rescore", "Score the kept responses once more, by the tasks' code as it is now, without "
                  "generating anything: new tables in OUTPUT/NAME/rescored, beside the old ones.")  # fmt: skip
    rescore.add_argument("sweep", help="the sweep's folder (OUTPUT/NAME)")
    rescore.add_argument("words", nargs="*", metavar="FIELD=VALUE", help="fields of the tasks that replace the sweep's "
                         "own, such as task.cpu_seconds=5")  # fmt: skip
    add("doctor", "Tell what this machine can do, and what is missing.")
    schema = add("schema", "Explain every field of a spec.")
    what = schema.add_mutually_exclusive_group()
    what.add_argument("section", nargs="?", default="", help="a field to explain alone, such as training or task.data")
    what.add_argument("--json", action="store_true", help="print a JSON Schema, with which editors complete and check "
                      "a spec")  # fmt: skip
    return parser


def _count(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
