"""One driver a sweep, whichever start at the same moment, and whatever the clocks of two hosts say."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from layersweep.orchestrator.execution import sweep_lock
from layersweep.orchestrator.execution.sweep_lock import check_owner, describe_driver, hold_lock
from layersweep.orchestrator.spec.errors import SpecError

ONE = """
import sys, time
from layersweep.orchestrator.execution.sweep_lock import hold_lock
from layersweep.orchestrator.spec.errors import SpecError
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold_lock(sys.argv[1]):
        print("owner", flush=True)
        sys.stdin.readline()
except SpecError as error:
    print(f"refused: {error}", flush=True)
"""


def sign(folder, number=1) -> dict:
    return json.loads((folder / f"lock/{number:06d}.json").read_text())


def put(folder, content, number=1) -> None:
    (folder / "lock").mkdir(parents=True, exist_ok=True)
    (folder / f"lock/{number:06d}.json").write_text(json.dumps(content))


def test_of_four_that_start_at_the_same_moment_one_owns_the_sweep_five_times(tmp_path):
    for turn in range(5):
        folder = tmp_path / f"sweep-{turn}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", ONE, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in processes]
        for process in processes:
            process.communicate("\n", timeout=60)
        assert sum(answer == "owner\n" for answer in answers) == 1, answers
        assert sum(answer.startswith("refused: ") for answer in answers) == 3, answers
        with hold_lock(str(folder)):  # all are done: it is free again
            pass


def test_a_driver_that_looked_before_another_took_the_lock_is_refused(tmp_path, monkeypatch):
    """The other one takes number 1, and has made sure of it, just after this one saw that there was none."""
    look, others = sweep_lock._highest, contextlib.ExitStack()

    def look_too_early(folder):
        found = look(folder)
        if not others_turn.pop("over", True):
            others.enter_context(hold_lock(folder))
        return found

    others_turn = {"over": False}
    monkeypatch.setattr(sweep_lock, "_highest", look_too_early)
    with others, pytest.raises(SpecError, match="another driver started this sweep at the same moment"):
        with hold_lock(str(tmp_path)):
            pass


def test_an_owner_on_this_host_is_known_by_its_process(tmp_path):
    with hold_lock(str(tmp_path)):
        with pytest.raises(SpecError, match=f"process {os.getpid()} on .* is running this sweep"):
            check_owner(str(tmp_path))
        mine = sign(tmp_path)
        put(tmp_path, mine | {"began": mine["began"] - 60})  # another process had the same number before
        check_owner(str(tmp_path))
        put(tmp_path, mine)
    assert sign(tmp_path) == {"released": True}
    check_owner(str(tmp_path))


@pytest.mark.parametrize("skew", [-1e6, 0, 1e6])
def test_an_owner_on_another_host_counts_as_gone_when_its_heartbeat_stands_still(tmp_path, monkeypatch, skew):
    """Whatever the other host's clock says."""
    monkeypatch.setattr(sweep_lock, "SILENT_SECONDS", 2.5)
    away = {"host": "elsewhere", "pid": 1, "began": 0.0, "token": "t", "heartbeat": time.time() + skew}
    put(tmp_path, away)
    check_owner(str(tmp_path))

    def heartbeat() -> None:
        time.sleep(1.2)
        put(tmp_path, away | {"heartbeat": away["heartbeat"] + 10})

    put(tmp_path, away)
    thread = threading.Thread(target=heartbeat)
    thread.start()
    with pytest.raises(SpecError, match="process 1 on elsewhere is running this sweep"):
        check_owner(str(tmp_path))
    thread.join()


def test_the_latest_driver_is_described_without_waiting(tmp_path, monkeypatch):
    folder, host = str(tmp_path), socket.gethostname()
    assert describe_driver(folder) == ("none now", True)
    with hold_lock(folder):
        assert describe_driver(folder) == (f"process {os.getpid()} on {host}", False)
        mine = sign(tmp_path)
        put(tmp_path, mine | {"began": mine["began"] - 60})
        assert describe_driver(folder) == (f"process {os.getpid()} on {host}, which is gone", True)
        put(tmp_path, {})  # being created
        assert describe_driver(folder) == ("none now", False)
    assert describe_driver(folder) == ("none now", True)
    monkeypatch.setattr(sweep_lock.time, "time", lambda: 1000.0)
    for heartbeat, age in ((880.4, 120), (2000.0, 0)):  # the other's clock may be ahead: nothing follows from it
        put(tmp_path, {"host": "elsewhere", "pid": 7, "began": 0.0, "token": "t", "heartbeat": heartbeat}, number=2)
        assert describe_driver(folder) == (f"process 7 on elsewhere, last heartbeat {age} s ago", False)


def test_an_owner_that_was_overtaken_ends_at_once(tmp_path, monkeypatch):
    """Stopped for longer than SILENT_SECONDS, say: another driver has the next number then."""
    monkeypatch.setattr(sweep_lock, "HEARTBEAT_SECONDS", 0.05)
    ended = threading.Event()
    monkeypatch.setattr(sweep_lock, "stop_at_once", ended.set)
    with hold_lock(str(tmp_path)):
        assert not ended.wait(0.5)
        put(tmp_path, {"host": "elsewhere"}, number=2)
        assert ended.wait(10)


def test_numbers_only_grow(tmp_path):
    for _ in range(3):
        with hold_lock(str(tmp_path)):
            pass
    assert sorted(path.name for path in (tmp_path / "lock").iterdir()) == ["000003.json"]


def test_in_a_store_without_folders(tmp_path):
    folder = f"memory://locks-{os.getpid()}/sweep"
    with hold_lock(folder), pytest.raises(SpecError, match="is running this sweep"), hold_lock(folder):
        pass
    with hold_lock(folder):
        pass
