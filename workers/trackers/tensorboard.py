"""TensorBoard's event files, written without torch or TensorFlow: `<folder>/<run>/events.out.tfevents.*`."""

import os
import socket
import tempfile
import time
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from layersweep.policies.selection import run_name
from layersweep.workers.storage.files import resolve_uri
from layersweep.workers.trackers.step_rows import metrics

if TYPE_CHECKING:
    import pandas as pd


class TensorBoard:
    """Every column of steps.parquet as a scalar (float32) at its step.

    Event files are only ever appended to. Where a step comes again, the file first says that the session started
    anew there, which makes readers drop what they had from this step on.

    Args:
        folder: a local one, or an fsspec URI; the latter is brought up to date each time the table is written.
    """

    def __init__(self, folder: str):
        filesystem, path = resolve_uri(folder)
        local = "file" in filesystem.protocol
        self.remote = None if local else (filesystem, path)
        self.folder = path if local else tempfile.mkdtemp(prefix="layersweep-tensorboard-")
        # A name of its own for each writer, sorted by age: readers take a run's files in this order.
        self.file = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self.last: dict[str, int] = {}
        self.changed: set[str] = set()

    def step(self, run: dict[str, Any], row: dict[str, Any]) -> None:
        name, step = run_name(run["selection"], run["seed"]), int(row["step"])
        values = [Summary.Value(tag=metric, simple_value=value) for metric, value in metrics(row).items()]
        events = [Event(step=step, summary=Summary(value=values))]
        if step <= self.last.get(name, step):  # also at this file's beginning: an older file may have gone further
            events.insert(0, Event(step=step, session_log=SessionLog(status=SessionLog.START)))
        if name not in self.last:
            events.insert(0, Event(file_version="brain.Event:2"))
        self.last[name] = step
        self._append(name, events)

    def table(self, frame: "pd.DataFrame") -> None:
        self._upload()

    def close(self) -> None:
        self._upload()

    def _append(self, run: str, events: list[Event]) -> None:
        # Opened for each row: a sweep has more runs than a process may have open files.
        os.makedirs(f"{self.folder}/{run}", exist_ok=True)
        with open(f"{self.folder}/{run}/{self.file}", "ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())
        self.changed.add(run)

    def _upload(self) -> None:
        if self.remote:
            filesystem, path = self.remote
            for run in sorted(self.changed):
                filesystem.makedirs(f"{path}/{run}", exist_ok=True)
                filesystem.put_file(f"{self.folder}/{run}/{self.file}", f"{path}/{run}/{self.file}")
        self.changed.clear()
