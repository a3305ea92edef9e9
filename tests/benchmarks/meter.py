"""CPU seconds of everything that a piece of work starts, whatever else the machine does meanwhile (Linux)."""

import ctypes
import os
import threading
from pathlib import Path

INTERVAL = 0.2
"""Seconds between two looks; what a process does between the last look and its end is missed."""
PR_SET_CHILD_SUBREAPER = 36


class Meter(threading.Thread):
    """Watches this process's descendants for the time of a `with` block.

    Ray's workers outlive the processes that start them and are not waited for, so no parent's times hold theirs.
    As a subreaper this process gets such orphans as its own children, and so keeps seeing them below itself.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.seconds: dict[tuple[int, int], float] = {}
        """By process: its id and when it started, since ids come back."""
        self.over = threading.Event()

    def __enter__(self) -> "Meter":
        self.before = set(_descendants())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        while not self.over.wait(INTERVAL):
            self._look()
        self._look()

    @property
    def cpu(self) -> float:
        """CPU seconds seen so far, of user and system."""
        return sum(self.seconds.values())

    def _look(self) -> None:
        for process, seconds in _descendants().items():
            if process not in self.before:
                self.seconds[process] = seconds


def _descendants() -> dict[tuple[int, int], float]:
    """CPU seconds by process id and start time, of all below this process."""
    parent, times = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        pid = int(entry.name)
        parent[pid] = int(fields[1])
        times[pid] = (pid, int(fields[19])), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below = {os.getpid()}
    found = True
    while found:
        found = {pid for pid, of in parent.items() if of in below and pid not in below}
        below |= found
    return dict(times[pid] for pid in below - {os.getpid()})
