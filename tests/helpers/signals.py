"""Stop signals at random moments of a sweep: each ends it with exit code 3, with nothing left behind.

    python -m tests.helpers.signals --times 10                                # of each of six kinds
    python -m tests.helpers.signals --minutes 8 --seed 1 --folder /tmp/parts  # a part: as many as come in that time

The second form keeps the undisturbed sweep in the folder, for the next part.

A sweep is stopped, resumed, stopped again ... until a start comes to its end before its signal; its table is that of an
undisturbed sweep. It is as small as one with all phases can be, since most of a trial is the start of Ray and of the
actors; and moments are drawn from as long as the undisturbed sweep took, so that each part of a start has its share of
them. A signal goes to the driver's process alone, or to its whole process group, as scancel, `timeout` and a closing
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

from tests.helpers.chaos import Processes, Size, check, spec, start, undisturbed

SIZE = Size(steps=6, layers=(1,), prompts=16)
KINDS = [(number, group) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for group in (False, True)]
MOST_IN_ONE = 8
"""Signals to one sweep at most; the start after them is left alone."""


def stop_and_resume(
    folder: Path, kinds: list[tuple[signal.Signals, bool]], rng: random.Random, latest: float, until: float
) -> int:
    """Give a sweep a signal of each kind, one per start, then let it end. Returns how many came before its end.

    Args:
        latest: seconds after its start when a command gets its signal, at most.
        until: time (of time.monotonic) after which no further signal is given.

    Raises:
        AssertionError: another exit code than 3, or processes that stay.
    """
    log, path, came = folder / "log.txt", spec(folder, SIZE), 0
    for number, group in kinds:
        if time.monotonic() > until:
            break
        with _going_on(folder, path, log) as process:
            processes, began = Processes(process), time.monotonic()
            moment = began + rng.uniform(0.5, latest)
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


def reference(folder: Path) -> tuple[pd.DataFrame, float]:
    """Return the table of an undisturbed sweep, and the seconds that it took; made unless the folder has them."""
    table, seconds = folder / "chaos/contribution.parquet", folder / "seconds.txt"
    if not seconds.exists():
        began = time.monotonic()
        undisturbed(folder, SIZE)
        seconds.write_text(f"{time.monotonic() - began:.1f}")
        print(f"undisturbed: {seconds.read_text()} s", flush=True)
    return pd.read_parquet(table).set_index("selection"), float(seconds.read_text())


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
        expected, latest = reference(Path(args.folder or root) / "undisturbed")
        done = number = 0
        while done < len(wanted) and time.monotonic() < until:
            folder = Path(root) / f"sweep-{number}"
            folder.mkdir()
            done += stop_and_resume(folder, wanted[done : done + MOST_IN_ONE], rng, latest, until)
            check(folder, expected, SIZE)
            number += 1
            print(f"{done} of {len(wanted)} signals in {number} sweeps: exit 3, nothing left, same table", flush=True)


if __name__ == "__main__":
    main()
