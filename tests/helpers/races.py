"""Two starts of one sweep at the same moment, again and again: exactly one owns it, and its files are the owner's.

    python -m tests.helpers.races --times 20 --output /tmp/races          # in a folder
    python -m tests.helpers.races --times 20 --bucket                     # in a bucket of moto's server on this machine
    python -m tests.helpers.races --times 2 --output /tmp/races --whole   # whole `layersweep run`s; a minute each

Real processes do what `layersweep run` does before and while it claims a folder, without Ray: half of the rounds in
new folders, half with --fresh in a folder that holds a sweep. moto and s3fs are not part of the pinned stack, see
`object_store`.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from layersweep.cli import DEMO
from layersweep.orchestrator.execution.launch import begin_sweep
from layersweep.orchestrator.execution.sweep_folder import check_folder
from layersweep.orchestrator.execution.sweep_lock import check_owner, hold_lock
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec
from layersweep.workers.storage.files import find_files, read_bytes, resolve_uri

SPREAD = 0.01
"""Seconds between the two starts at most."""


def racer() -> None:
    """Answer rounds on standard input: [output, name, fresh, when]; `owner` or `refused: ...`, then its end."""
    for line in sys.stdin:
        output, name, fresh, when = json.loads(line)
        # Its own process number as the number of steps: the files must all be the owner's.
        changes = {"output": output, "name": name, "training.steps": os.getpid()}
        plan = make_plan(load_spec(DEMO, changes), fetch=False)
        try:
            check_folder(plan.folder, fresh)
            check_owner(plan.folder)
            time.sleep(max(0.0, when - time.monotonic() - 0.02))
            while time.monotonic() < when:  # to the microsecond
                pass
            with hold_lock(plan.folder):
                begin_sweep(plan, fresh)
                print(f"owner {os.getpid()}", flush=True)
                sys.stdin.readline()
        except SpecError as error:
            print(f"refused: {error}", flush=True)
            sys.stdin.readline()
        print("ended", flush=True)


def race(output: str, times: int, racers: int) -> None:
    """Race for new folders, and with `--fresh` for one that holds a sweep.

    Raises:
        AssertionError: none owns the sweep or two do, or the files are another's.
    """
    command = [sys.executable, "-c", "from tests.helpers.races import racer; racer()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(racers)]
    rng, won = random.Random(0), [0] * racers
    try:
        for fresh in (False, True):
            for number in range(times + fresh):
                name = "fresh" if fresh else f"new-{number}"
                # The first of the fresh rounds finds no sweep, the others that of the round before.
                answers = one_round(processes, output, name, fresh, rng)
                owners = [i for i, answer in enumerate(answers) if answer.startswith("owner ")]
                assert len(owners) == 1, answers
                assert all(answer.startswith(("owner ", "refused: ")) for answer in answers), answers
                won[owners[0]] += 1
            kind = f"{output}, {'with' if fresh else 'without'} --fresh"
            print(f"{kind}: {number + 1} rounds of {racers}, one owner each; won so far: {won}", flush=True)
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(120)


def one_round(processes: list[subprocess.Popen], output: str, name: str, fresh: bool, rng: random.Random) -> list[str]:
    """Start all at one moment; their answers. The folder is that of the one owner, and free afterwards."""
    when = time.monotonic() + 1.5
    for process in processes:
        process.stdin.write(json.dumps([output, name, fresh, when + rng.uniform(0, SPREAD)]) + "\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]
    owners = [answer.split()[1] for answer in answers if answer.startswith("owner ")]
    written = yaml.safe_load(read_bytes(f"{output}/{name}/sweep.yaml"))["training"]["steps"]
    assert [str(written)] == owners, (written, answers)
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.stdout.readline() for process in processes] == ["ended\n"] * len(processes)
    filesystem, lock = resolve_uri(f"{output}/{name}/lock")
    highest = max(find_files(filesystem, lock, depth=1))
    assert json.loads(read_bytes(f"{output}/{name}/lock/{highest}")) == {"released": True}
    return answers


def whole(output: str, times: int) -> None:
    """Race whole `layersweep run`s of a sweep of one step, in turn without and with --fresh.

    Raises:
        AssertionError: other exit codes than one 0 and one 2, or a table that is not complete.
    """
    fields = ["layers=[1]", "name=whole", "training.steps=2", "training.prompts_per_step=8", "training.warmup_steps=0",
              "evaluation={suites: [{name: sort, prompts: 16, samples: 2}]}", f"output={output}"]  # fmt: skip
    for number in range(times):
        fresh = ["--fresh"] if number else []
        command = [sys.executable, "-m", "layersweep", "run", *fields, *fresh]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
        said = [process.communicate(timeout=400)[0] for process in processes]
        codes = [process.returncode for process in processes]
        assert sorted(codes) == [0, 2], (codes, *(text[-2000:] for text in said))
        loser = said[codes.index(2)]
        assert "started this sweep at the same moment" in loser or "is running this sweep" in loser, loser
        print(f"whole runs, {'with' if fresh else 'without'} --fresh: exit codes {codes}; {loser.splitlines()[-1]}",
              flush=True)  # fmt: skip


@contextlib.contextmanager
def bucket() -> Iterator[str]:
    """A bucket of a server on this machine; its URI."""
    import socket

    from moto.server import ThreadedMotoServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test",
                   "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        resolve_uri("s3://races")[0].mkdir("races")
        yield "s3://races/runs"
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--racers", type=int, default=2)
    parser.add_argument("--output")
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    with bucket() if args.bucket else tempfile.TemporaryDirectory(prefix="layersweep-races-", dir=args.output) as place:
        whole(str(Path(place)) if not args.bucket else place, args.times) if args.whole else race(
            place, args.times, args.racers
        )


if __name__ == "__main__":
    main()
