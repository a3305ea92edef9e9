"""Prompt data in a store that does not answer for a moment: what may pass is told from what another attempt does not
change, and a rollout worker that starts waits for it."""

import gzip
import json

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from layersweep.rollout.config import SuiteConfig
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.data_files import DataError, DataUnavailable
from layersweep.rollout.tasks.math import MathConfig
from layersweep.workers.actors.rollout_worker import RolloutWorker
from layersweep.workers.config import TrainingConfig
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from layersweep.workers.storage import retries


class Unreachable(Exception):
    """No OSError: stores raise classes of their own."""


class RemoteFile(AbstractBufferedFile):
    """A file as those of buckets are: of fsspec's class, whose `readline` takes no bound."""

    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path)[start:end]


class Remote(MemoryFileSystem):
    """A store whose next calls of some kind fail."""

    protocol = "remote"
    store: dict = {}
    failing: dict[str, list[Exception]] = {}
    """Errors of the next calls, by method."""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("remote://"))

    def _fail(self, method: str) -> None:
        if self.failing.get(method):
            raise self.failing[method].pop(0)

    def info(self, path, **kwargs):
        self._fail("info")
        return super().info(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self._fail(f"ls {path.rstrip('/')}")
        return super().ls(path, detail, **kwargs)

    def _open(self, path, mode="rb", **kwargs):
        self._fail("open")
        return RemoteFile(self, path) if mode == "rb" else super()._open(path, mode, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._fail("read")
        return bytes(self.store[path].getbuffer()[start:end])


@pytest.fixture
def store(monkeypatch):
    """Ten sums in two files of a folder `remote://sums`; the seconds waited."""
    fsspec.register_implementation("remote", f"{__name__}.Remote", clobber=True)
    monkeypatch.setattr(Remote, "store", {})
    monkeypatch.setattr(Remote, "failing", {})
    files = Remote()
    for name, numbers in (("one/a.jsonl", range(5)), ("one/more/b.jsonl", range(5, 10))):
        rows = [{"question": f"is {i}+{i}", "answer": str(2 * i)} for i in numbers]
        files.pipe_file(f"/sums/{name}", "".join(json.dumps(row) + "\n" for row in rows).encode())
    waited = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    return waited


def config(path: str = "remote://sums/one", selection_share: float = 0.0) -> MathConfig:
    data = DataConfig(path=path, prompt_format="plain", selection_share=selection_share, final_share=0.0)
    return MathConfig(data=data)


@pytest.mark.parametrize("error", [OSError("503 Slow Down"), TimeoutError("read timed out"), Unreachable("no route")])
@pytest.mark.parametrize("method", ["info", "ls /sums/one", "open", "read"])
def test_what_may_pass(store, method, error):
    """At each call that is made."""
    path = "remote://sums/one/more" if method != "ls /sums/one" else "remote://sums/one"
    Remote.failing[method] = [error]
    with pytest.raises(DataUnavailable, match=f"data.path: .*{error}") as raised:
        config(path).build()
    assert isinstance(raised.value, DataError) and isinstance(raised.value, OSError)


def test_a_folder_within_that_is_not_listed_is_not_left_out(store):
    """fsspec's walk omits what it cannot list: half of the files would be the data."""
    Remote.failing["ls /sums/one/more"] = [OSError("503")]
    with pytest.raises(DataUnavailable, match="503"):
        config().data.files()


@pytest.mark.parametrize(
    ("error", "method"),
    [(FileNotFoundError("gone"), "info"), (FileNotFoundError("gone"), "open"), (PermissionError("no"), "info")],
)
def test_what_another_attempt_does_not_change(store, error, method):
    Remote.failing[method] = [error]
    with pytest.raises(DataError) as raised:
        config("remote://sums/one/more").build()
    assert not isinstance(raised.value, OSError)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_every_form_is_read_from_a_store(store, name):
    rows = [{"question": f"is {i}+{i}", "answer": str(2 * i)} for i in range(5)]
    table = pd.DataFrame(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    content = {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.json": json.dumps(rows).encode(),
               "a.csv": table.to_csv(index=False).encode(), "a.parquet": table.to_parquet()}[name]  # fmt: skip
    Remote().pipe_file(f"/forms/{name}", content)
    task = config(f"remote://forms/{name}").build()
    assert sorted(prompt.truth[0] for prompt in task.data.all_prompts("train")) == ["0", "2", "4", "6", "8"]


def test_damage_is_no_error_that_passes(store):
    Remote().pipe_file("/sums/c.csv", b'question,answer\n"is 1')
    with pytest.raises(DataError, match="cannot be read: unexpected end") as raised:
        config("remote://sums/c.csv").build()
    assert not isinstance(raised.value, OSError)


@pytest.fixture
def start(tmp_path):
    """Starts a rollout worker that trains on the sums, with a suite over other ones."""
    character_tokenizer("0123456789+is ").save_pretrained(tmp_path / "model")
    path = "remote://sums/one/more"

    def start(path: str = path) -> RolloutWorker:
        suite = SuiteConfig(name="held-out", prompts=2, task=config("remote://sums/one/a.jsonl", 1.0))
        training = TrainingConfig(prompts_per_step=2, max_response_tokens=2)
        return RolloutWorker(ModelSource(str(tmp_path / "model")), config(path), [suite], training)

    return start


def test_a_worker_that_starts_waits_for_the_store(store, start, caplog):
    """1 s after the first error, 4 s after the second; the suite's own 1 s after its first."""
    Remote.failing["open"] = [OSError("503 Slow Down"), Unreachable("no route")]
    assert start().task.data.report.train == 5
    assert store == [1.0, 4.0]
    warned = [record.getMessage() for record in caplog.records if "again in" in record.getMessage()]
    assert len(warned) == 2 and "reading the prompts: data.path: " in warned[0] and "503 Slow Down" in warned[0]


def test_a_worker_gives_up_after_four_attempts(store, start):
    Remote.failing["open"] = [OSError(f"503, time {number}") for number in range(1, 9)]
    with pytest.raises(DataUnavailable, match="503, time 4"):
        start()
    assert store == [1.0, 4.0, 15.0]


def test_a_missing_file_is_an_error_at_once(store, start):
    with pytest.raises(DataError, match="data.path: remote://sums/nowhere.jsonl does not exist"):
        start("remote://sums/nowhere.jsonl")
    assert store == []
