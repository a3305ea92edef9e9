"""Stop signals at random moments of a sweep: each ends it with exit code 3, with nothing left behind.

    python -m tests.helpers.signals --times 10                                # of each of six kinds; about 40 minutes
    python -m tests.helpers.signals --minutes 8 --seed 1 --folder /tmp/parts  # a part: as many as come in that time

The second form keeps the undisturbed sweep in the folder, for the next part.

A sweep is stopped, resumed, stopped again ... and in the end brought to its end; its table is that of an undisturbed
sweep. A signal goes to the driver's process alone, or to its whole process group, as scancel, `timeout` and a closing
terminal send it.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from tests.helpers.chaos import Processes, check, spec, start, undisturbed

KINDS = [(number, group) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for group in (False, True)]
LATEST = 75.0
"""Seconds after its start when a command gets its signal, at most: from the first import to the last steps."""


def stop_and_resume(folder: Path, kinds: list[tuple[signal.Signals, bool]], rng: random.Random, until: float) -> int:
    """Give a sweep a signal of each kind, one per start, then let it end. Returns how many came before its end.

    Args:
        until: time (of time.monotonic) after which no further signal is given.

    Raises:
        AssertionError: another exit code than 3, or processes that stay.
    """
    log, path, came = folder / "log.txt", spec(folder), 0
    for number, group in kinds:
        if time.monotonic() > until:
            break
        with _going_on(folder, path, log) as process:
            processes, began = Processes(process), time.monotonic()
            moment = began + rng.uniform(0.5, LATEST)
            while process.poll() is None and time.monotonic() < moment:
                processes.all()
                time.sleep(0.2)
            if process.poll() is not None:
                assert process.returncode == 0, log.read_text()[-3000:]
                return came
            name = f"{number.name} to the {'group' if group else 'driver'} after {time.monotonic() - began:.0f} s"
            os.killpg(process.pid, number) if group else os.kill(process.pid, number)
            code = process.wait(240)
            print(f"  {name}: exit {code} after {time.monotonic() - moment:.0f} s", flush=True)
            assert code == 3, (name, log.read_text()[-3000:])
            assert not (left := processes.left()), (name, left)
            came += 1
    with _going_on(folder, path, log) as process:
        assert process.wait(900) == 0, log.read_text()[-3000:]
    return came


@contextlib.contextmanager
def _going_on(folder: Path, path: Path, log: Path) -> Iterator[subprocess.Popen]:
    """Resume the sweep, or start it where it was stopped before it began. It ends with this program, if not before."""
    begun = (folder / "chaos/checkpoints/experiment.json").exists()
    process = start(*(("resume", str(folder / "chaos")) if begun else ("run", str(path))), log, own_group=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(240)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="give no signal later than this")
    parser.add_argument("--folder", help="for the sweeps (default: a temporary one)")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    rng = random.Random(args.seed)
    wanted = KINDS * args.times
    rng.shuffle(wanted)
    with tempfile.TemporaryDirectory(prefix="layersweep-signals-", dir=args.folder) as root:
        reference = Path(args.folder or root) / "undisturbed"
        done_before = (table := reference / "chaos/contribution.parquet").exists()
        expected = pd.read_parquet(table).set_index("selection") if done_before else undisturbed(reference)
        done = number = 0
        while done < len(wanted) and time.monotonic() < until:
            folder = Path(root) / f"sweep-{number}"
            folder.mkdir()
            done += stop_and_resume(folder, wanted[done : done + 4], rng, until)
            check(folder, expected)
            number += 1
            print(f"{done} of {len(wanted)} signals in {number} sweeps: exit 3, nothing left, same table", flush=True)


if __name__ == "__main__":
    main()
