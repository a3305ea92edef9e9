"""Faults against sweeps that are running; tests/helpers/chaos.py has the harness, and a longer series of them."""

import random
import signal

import pytest

from tests.helpers.chaos import Processes, began, check, spec, start, sweep_through, undisturbed, wait_for
from tests.helpers.signals import stop_and_resume

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of a sweep that nothing happens to."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "sweep")


def test_six_faults_change_nothing(tmp_path, expected, capsys):
    """A trainer, an engine, the driver and the collector are killed, an engine hangs, a checkpoint is cut: every run is
    completed, every step is there once, the table is the undisturbed one, no process is left."""
    faults = ["trainer", "hung engine", "truncated", "collector", "engine", "driver"]
    came = sweep_through(tmp_path, faults, random.Random(0), print)
    assert came >= 5, capsys.readouterr().out  # the sweep may be done before the last
    check(tmp_path, expected)


def test_stop_signals_to_driver_and_group_change_nothing(tmp_path, expected):
    """Three of tests/helpers/signals.py, which has all kinds: exit 3, nothing left, and in the end the same table."""
    kinds = [(signal.SIGTERM, True), (signal.SIGHUP, False), (signal.SIGHUP, True)]
    assert stop_and_resume(tmp_path, kinds, random.Random(1), print) >= 1
    check(tmp_path, expected)


def test_a_removed_node_takes_its_actors_elsewhere(tmp_path, expected, monkeypatch):
    """Three Ray nodes; the one that holds the engine and trainers dies. The sweep goes on, on the other."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        log = tmp_path / "log.txt"
        process = start("run", str(spec(tmp_path)), log, "--address", cluster.address)
        trees = {node: Processes(node.all_processes["raylet"][0].process) for node in nodes}

        def has_trainer(node) -> bool:
            return bool(trees[node].of("Trainer"))

        wait_for(lambda: began(tmp_path) and any(map(has_trainer, nodes)), 200, process)
        victim = next(node for node in nodes if has_trainer(node))
        cluster.remove_node(victim, allow_graceful=False)
        assert process.wait(400) == 0, log.read_text()[-5000:]
        assert "recovering" in log.read_text()
        check(tmp_path, expected)
    finally:
        cluster.shutdown()
