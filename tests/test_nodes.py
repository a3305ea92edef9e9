"""What a cluster of several Ray nodes can never place is refused; real raylets, each with its own resources."""

import pytest
from ray.cluster_utils import Cluster

from tests.chaos import spec, start

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def cluster(monkeypatch):
    """A head that takes no actors; the caller adds nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_what_can_never_be_placed_is_refused_and_leaves_nothing(tmp_path, cluster):
    cluster.add_node(num_cpus=1)
    log = tmp_path / "log.txt"
    process = start("run", str(spec(tmp_path, resources={"engine": {"cpus": 3.0}})), log, "--address", cluster.address)
    assert process.wait(60) == 2
    assert "layersweep: resources.engine.cpus: asks for 3 CPUs on one node, and the largest has 1" in log.read_text()
    assert not (tmp_path / "chaos").exists()
