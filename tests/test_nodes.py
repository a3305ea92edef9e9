"""Sweeps over several Ray nodes on one machine: real raylets, each with its own resources."""

import time

import pandas as pd
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from tests.chaos import began, spec, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]
SECTIONS = {"training": {"steps": 6}, "resources": {"engine": {"cpus": 1.9}, "trainer": {"cpus": 0.9}}}


@pytest.fixture
def cluster(monkeypatch):
    """A head that takes no actors; the caller adds nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # for Ray's state API: other tests may have a Ray too
    yield cluster
    if ray.is_initialized():
        ray.shutdown()
    cluster.shutdown()


def homes() -> dict[str, str]:
    """The node of every living actor by its name."""
    from ray.util.state import list_actors

    return {actor.name: actor.node_id for actor in list_actors(filters=[("state", "=", "ALIVE")]) if actor.name}


def test_crews_spread_over_nodes_and_a_new_node_is_used(tmp_path, cluster):
    """The engine fills one node; the trainers are elsewhere, the full run's two ranks on two nodes. A node that comes
    later takes a run at once. The table is that of one node and one rank, but for rounding."""
    one = tmp_path / "one"
    one.mkdir()
    log = tmp_path / "log.txt"
    assert start("run", str(spec(one, training={"steps": 6})), log).wait() == 0, log.read_text()

    cluster.add_node(num_cpus=2)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    path = spec(tmp_path, **SECTIONS)
    data = yaml.safe_load(path.read_text())
    data["resources"]["full_trainer_ranks"] = 2
    path.write_text(yaml.safe_dump(data))
    process = start("run", str(path), log, "--address", cluster.address)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    wait_for(lambda: "Trainer-full-seed0-rank1" in homes(), 200, process)
    before = homes()
    assert len({before["Engine-0"], before["Trainer-full-seed0-rank0"], before["Trainer-full-seed0-rank1"]}) == 3
    assert "Trainer-layer-01-seed0" not in before  # waits for its turn
    late = cluster.add_node(num_cpus=1)
    wait_for(lambda: late.node_id in homes().values(), 100, process)
    assert [name for name, node in homes().items() if node == late.node_id][0].startswith("Trainer-layer-")
    assert process.wait(400) == 0, log.read_text()[-4000:]
    ours, theirs = (pd.read_parquet(folder / "chaos/steps.parquet").set_index(["selection", "step"])
                    for folder in (tmp_path, one))  # fmt: skip
    assert len(ours) == 3 * 6
    for selection, tolerance in (("layer-01", 0), ("layer-04", 0), ("full", 1e-3)):
        for column in ("loss", "update_norm"):
            expected = theirs.loc[selection, column].to_numpy()
            assert ours.loc[selection, column].to_numpy() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_what_can_never_be_placed_is_refused_and_leaves_nothing(tmp_path, cluster):
    cluster.add_node(num_cpus=1)
    path = spec(tmp_path, resources={"engine": {"cpus": 3.0}})
    log = tmp_path / "log.txt"
    began_at = time.monotonic()
    process = start("run", str(path), log, "--address", cluster.address)
    assert process.wait(60) == 2
    assert time.monotonic() - began_at < 60
    assert "layersweep: resources.engine.cpus: asks for 3 CPUs on one node, and the largest has 1" in log.read_text()
    assert not (tmp_path / "chaos").exists() and not began(tmp_path)
