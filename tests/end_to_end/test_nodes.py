"""Sweeps over several Ray nodes on one machine: real raylets, each with its own resources and its own workers."""

from pathlib import Path

import pandas as pd
import pytest
from ray.cluster_utils import Cluster

from tests.helpers.chaos import Processes, began, spec, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]
STEPS = 4


@pytest.fixture
def cluster(monkeypatch):
    """A head that takes no actors; the caller adds nodes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def small(folder, rate=1e-3, **resources):
    """Layers 1 and 4 and full, a few steps. Of the demo's 32 prompts a step 8 are left."""
    training = {"steps": STEPS, "prompts_per_step": 8, "warmup_steps": 1, "learning_rate": rate}
    return str(spec(folder, training=training, resources=resources, deepspeed={"full_zero_stage": 2}))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the sweep on one node, with one rank a run."""
    folder = tmp_path_factory.mktemp("alone")
    log = folder / "log.txt"
    assert start("run", small(folder), log).wait(200) == 0, log.read_text()[-3000:]
    return folder


def assert_same(folder, other, rtol):
    """Every run completed, with the same numbers: equal, or up to rounding."""
    for name, index, columns in (
        (
            "contribution",
            ["selection"],
            ["score", "score_low", "score_high", "update_norm", "generated_tokens", "final_score"],
        ),
        ("steps", ["selection", "seed", "step"], ["reward_mean", "loss", "grad_norm", "update_norm"]),
    ):
        ours, theirs = (pd.read_parquet(f / f"chaos/{name}.parquet").set_index(index) for f in (folder, other))
        pd.testing.assert_frame_equal(ours[columns].sort_index(), theirs[columns].sort_index(), rtol=rtol, atol=rtol)
    assert (pd.read_parquet(folder / "chaos/contribution.parquet")["status"] == "completed").all()
    assert len(pd.read_parquet(folder / "chaos/steps.parquet")) == 3 * STEPS


def add(cluster, cpus) -> Processes:
    """One more node; its processes."""
    return Processes(cluster.add_node(num_cpus=cpus).all_processes["raylet"][0].process)


def test_two_ranks_on_two_nodes_are_one_and_their_weights_reach_an_engine_on_a_third(tmp_path, cluster, alone):
    """The engine leaves no room on its node, a rank none on its own: each run trains on the two others. Rounding
    apart (the ranks' sums are of other terms), the numbers are those of one node and one rank."""
    first, *others = add(cluster, 2), add(cluster, 1), add(cluster, 1)
    actors = {"engine": {"cpus": 1.9}, "trainer": {"cpus": 0.9}, "trainer_ranks": 2, "full_trainer_ranks": 2}
    log = tmp_path / "log.txt"
    process = start("run", small(tmp_path, **actors), log, "--address", cluster.address)
    wait_for(lambda: all(node.of("Trainer") for node in others), 120, process)
    assert first.of("Engine") and not first.of("Trainer")
    assert not any(node.of("Engine") for node in others)
    assert process.wait(200) == 0, log.read_text()[-4000:]
    assert_same(tmp_path, alone, rtol=1e-5)


def test_engines_go_where_they_leave_room_for_a_trainer(tmp_path, cluster, alone):
    """Two engines of 1.4 on nodes of 2 and 3 CPUs: only if both are on the larger is there room for a rank of 2."""
    small_node, _ = add(cluster, 2), add(cluster, 3)
    log = tmp_path / "log.txt"
    path = small(tmp_path, engines=2, engine={"cpus": 1.4}, trainer={"cpus": 2})
    process = start("run", path, log, "--address", cluster.address)
    wait_for(lambda: small_node.of("Trainer"), 120, process)
    assert not small_node.of("Engine")
    assert process.wait(200) == 0, log.read_text()[-4000:]
    assert_same(tmp_path, alone, rtol=0)


def test_a_node_added_half_way_takes_a_run_that_waited(tmp_path, cluster, alone):
    """Beside the engine's node there is room for one run; the next one starts on the node that comes."""
    add(cluster, 2), add(cluster, 1)
    log = tmp_path / "log.txt"
    path = small(tmp_path, engine={"cpus": 1.9}, trainer={"cpus": 0.9})
    process = start("run", path, log, "--address", cluster.address)
    wait_for(lambda: began(tmp_path), 120, process)
    late = add(cluster, 1)
    wait_for(lambda: late.of("Trainer"), 60, process)
    assert process.wait(200) == 0, log.read_text()[-4000:]
    assert_same(tmp_path, alone, rtol=0)


def test_two_sweeps_at_the_same_time_do_not_meet(tmp_path, cluster, alone):
    """Their runs have the same names, their learning rates differ: each ends as it does alone. A third one that has
    the name of the first is refused, and leaves nothing."""
    node = add(cluster, 2)
    folders = [tmp_path / name for name in ("alone", "first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    logs = [folder / "log.txt" for folder in folders]
    specs = [Path(small(folder, rate)) for folder, rate in zip(folders, (5e-4, 1e-3, 5e-4, 1e-3), strict=True)]
    specs[2].write_text(specs[2].read_text().replace("name: chaos", "name: other"))
    assert start("run", str(specs[0]), logs[0]).wait(200) == 0
    first, second = (start("run", str(specs[k]), logs[k], "--address", cluster.address) for k in (1, 2))
    wait_for(lambda: len(node.of("Engine")) == 2, 100, first)
    assert start("run", str(specs[3]), logs[3], "--address", cluster.address).wait(100) == 2
    assert "layersweep: name: a sweep chaos is running on this cluster already" in logs[3].read_text()
    assert not (folders[3] / "chaos").exists()
    assert [first.wait(200), second.wait(200)] == [0, 0]
    (folders[2] / "other").rename(folders[2] / "chaos")
    assert_same(folders[1], alone, rtol=0)
    assert_same(folders[2], folders[0], rtol=0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": {"cpus": 3.0}}, "resources.engine.cpus: asks for 3 CPUs on one node, and the largest has 1"),
        ({"engines": 2, "engine": {"cpus": 0.45}, "trainer": {"cpus": 0.9}, "trainer_ranks": 2},
         "resources.trainer.cpus: rank 2 of a layer run's 2 asks for 0.9 CPUs on one node, and beside 2 x 0.45 for "
         "engines the freest of 3 nodes has 0.1 left"),
    ],
)  # fmt: skip
def test_what_can_never_be_placed_is_refused_and_leaves_nothing(tmp_path, cluster, asked, said):
    """The head takes no actor; of two nodes one would be the engines', and the other has room for one rank."""
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    log = tmp_path / "log.txt"
    process = start("run", str(spec(tmp_path, resources=asked)), log, "--address", cluster.address)
    assert process.wait(60) == 2
    assert f"layersweep: {said}" in log.read_text()
    assert not (tmp_path / "chaos").exists()
