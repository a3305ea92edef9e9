"""The collector's start: a store that does not answer for a moment, and one that does not at all."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from layersweep.workers.actors.collector import Collector
from layersweep.workers.storage import retries
from layersweep.workers.storage.run_store import CheckpointRecord, RunStore
from layersweep.workers.storage.tables import BY_SUITE
from layersweep.workers.trackers.config import TrackingConfig
from tests.helpers.tables import run_facts


class EndpointConnectionError(Exception):
    """As botocore's, which is no OSError."""


class Flaky(MemoryFileSystem):
    """A store whose reads fail as often as `failures` says."""

    protocol = "flaky"
    failures = 0
    error: Exception = OSError("503 Slow Down")

    def cat_file(self, *args, **kwargs):
        if Flaky.failures:
            Flaky.failures -= 1
            raise Flaky.error
        return super().cat_file(*args, **kwargs)


@pytest.fixture
def folder(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    waited = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    monkeypatch.setattr(Flaky, "error", OSError("503 Slow Down"))
    store = RunStore("flaky://collector/sweep", "layer-01-seed0")
    store.write_metadata({"selection": "layer-01", "seed": 0, "status": "running"})
    store.commit(CheckpointRecord(1, {}, [{"selection": "layer-01", "seed": 0, "step": 0, "loss": 0.5}], 1.0), 1)
    yield "flaky://collector/sweep", waited
    Flaky.failures = 0
    Flaky.store.clear()


def collector(folder: str) -> Collector:
    table, by_suite = (lambda *frames: frames[1]), (lambda *frames: BY_SUITE.frame([]))
    return Collector(folder, [run_facts("layer-01")], table, by_suite, 2, "s", TrackingConfig())


@pytest.mark.parametrize("error", [OSError("503 Slow Down"), EndpointConnectionError("no route")], ids=repr)
@pytest.mark.parametrize("failures", range(4))
def test_a_store_that_answers_late_loses_nothing(folder, monkeypatch, failures, error):
    """After 1, 4 and 15 s more; Ray does not start an actor again whose constructor raises."""
    place, waited = folder
    monkeypatch.setattr(Flaky, "error", error)
    Flaky.failures = failures
    found = collector(place)
    assert found.steps["layer-01", 0][0]["loss"] == 0.5 and found.runs["layer-01", 0]["status"] == "running"
    assert waited == [1.0, 4.0, 15.0][:failures]


def test_a_store_that_does_not_answer_is_named(folder):
    place, waited = folder
    Flaky.failures = 4
    with pytest.raises(OSError, match="503 Slow Down"):
        collector(place)
    assert waited == [1.0, 4.0, 15.0]


@pytest.mark.parametrize("error", [PermissionError("no"), NotADirectoryError("no")], ids=repr)
def test_what_does_not_pass_is_not_waited_for(folder, monkeypatch, error):
    place, waited = folder
    monkeypatch.setattr(Flaky, "error", error)
    Flaky.failures = 1
    with pytest.raises(type(error)):
        collector(place)
    assert waited == []
