"""Stop signals at random moments of a sweep: each ends it with exit code 3, with nothing left behind.

    python -m tests.helpers.signals --times 10      # of each of six kinds; about 40 minutes on two idle cores

A sweep is stopped, resumed, stopped again ... and in the end brought to its end; its table is that of an undisturbed
sweep. A signal goes to the driver's process alone, or to its whole process group, as scancel, `timeout` and a closing
terminal send it.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from tests.helpers.chaos import Processes, check, spec, start, undisturbed

KINDS = [(number, group) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for group in (False, True)]
LATEST = 75.0
"""Seconds after its start when a command gets its signal, at most: from the first import to the last steps."""


def stop_and_resume(folder: Path, kinds: list[tuple[signal.Signals, bool]], rng: random.Random, say) -> int:
    """Give a sweep a signal of each kind, one per start, then let it end. Returns how many came before its end.

    Raises:
        AssertionError: another exit code than 3, or processes that stay.
    """
    log, path, came = folder / "log.txt", spec(folder), 0
    for number, group in kinds:
        process = _go_on(folder, path, log)
        processes, began = Processes(process), time.monotonic()
        until = began + rng.uniform(0.5, LATEST)
        while process.poll() is None and time.monotonic() < until:
            processes.all()
            time.sleep(0.2)
        if process.poll() is not None:
            assert process.returncode == 0, log.read_text()[-3000:]
            return came
        name = f"{number.name} to the {'group' if group else 'driver'} after {time.monotonic() - began:.0f} s"
        os.killpg(process.pid, number) if group else os.kill(process.pid, number)
        code = process.wait(240)
        say(f"  {name}: exit {code}")
        assert code == 3, (name, log.read_text()[-3000:])
        assert not (left := processes.left()), (name, left)
        came += 1
    assert _go_on(folder, path, log).wait(900) == 0, log.read_text()[-3000:]
    return came


def _go_on(folder: Path, path: Path, log: Path):
    """Resume the sweep, or start it where it was stopped before it began."""
    begun = (folder / "chaos/checkpoints/experiment.json").exists()
    return start(*(("resume", str(folder / "chaos")) if begun else ("run", str(path))), log, own_group=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    wanted = KINDS * args.times
    rng.shuffle(wanted)
    with tempfile.TemporaryDirectory(prefix="layersweep-signals-") as root:
        expected = undisturbed(Path(root) / "undisturbed")
        done = number = 0
        while done < len(wanted):
            folder = Path(root) / f"sweep-{number}"
            folder.mkdir()
            done += stop_and_resume(folder, wanted[done : done + 4], rng, print)
            check(folder, expected)
            number += 1
            print(f"{done} of {len(wanted)} signals in {number} sweeps: exit 3, nothing left, same table", flush=True)


if __name__ == "__main__":
    main()
