"""Actors on each GPU, counted by hand."""

from pathlib import Path

import pytest

from layersweep.cli import DEMO
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.cluster_forecast import plan_on
from layersweep.orchestrator.planning.cluster_shape import parse_cluster
from layersweep.orchestrator.planning.gpu_allocation import FreeResources, Gpu, PlacementError, allocate_gpus
from layersweep.orchestrator.planning.placement import allocate_gpus_on, placement_problems
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.load import load_spec
from layersweep.workers.actors.gpu_share import trainers_per_gpu
from layersweep.workers.config import ActorResources, ResourcesConfig

FOLDER = Path(DEMO).parent


def resources(**fields) -> ResourcesConfig:
    return ResourcesConfig.model_validate(fields)


def test_trainers_per_gpu_leaves_room_for_the_trunk():
    """0.95 / 0.25 = 3.8, 0.95 / 0.2375 = 4, (0.3 - 0.05) / 0.25 = 1; a share of 0.05 has room for the trunk alone."""
    assert [
        trainers_per_gpu(1.0, 0.25),
        trainers_per_gpu(1.0, 0.2375),
        trainers_per_gpu(0.3, 0.25),
        trainers_per_gpu(0.05, 0.1),
    ] == [3, 4, 1, 0]


def test_engines_full_run_and_berths_side_by_side():
    """Eight GPUs: two engines of two each, full on two; two shared GPUs of three trainers are left."""
    asked = resources(
        engines=2, engine={"gpus": 2}, trainer={"gpus": 0.3}, full_trainer={"gpus": 1}, full_trainer_ranks=2
    )
    found = allocate_gpus(asked, 1, (4, 4))
    assert (found.whole_runs, found.layer_runs, found.in_turn, found.runs) == (1, 6, False, 7)
    assert found.shared_gpus == (1.0, 1.0)
    assert [gpu.engines for gpu in found.gpus] == [[0], [0], [1], [1], [], [], [], []]
    assert [gpu.whole_ranks for gpu in found.gpus] == [0, 0, 0, 0, 1, 1, 0, 0]


def test_gpus_of_whole_model_runs_join_the_layer_trainers():
    """The same eight: once full has ended, four GPUs take three layer trainers each. Not if boosts come after the layer
    runs, and not where trainers share the rest of a GPU with them, which cannot grow."""
    asked = {"engines": 2, "engine": {"gpus": 2}, "trainer": {"gpus": 0.3}, "full_trainer": {"gpus": 1}}
    found = allocate_gpus(resources(**asked, full_trainer_ranks=2), 1, (4, 4))
    assert (found.joining, found.last_layer_runs) == ((1.0, 1.0), 12)
    found = allocate_gpus(resources(**asked, full_trainer_ranks=2), 1, (4, 4), boosts=True)
    assert (found.layer_runs, found.joining, found.last_layer_runs) == (6, (), 0)
    one = resources(engine={"gpus": 0.3}, trainer={"gpus": 0.25}, full_trainer={"gpus": 0.4})
    assert allocate_gpus(one, 1, (1,)).joining == ()


def test_an_engine_spans_no_nodes():
    """Three GPUs a node: two engines of two leave one on either node, and a third one does not fit into these two."""
    asked = {"engine": {"gpus": 2}, "trainer": {"gpus": 1}}
    assert allocate_gpus(resources(engines=2, **asked), 0, (3, 3)).layer_runs == 2
    with pytest.raises(PlacementError, match="^resources.engines: 3 engines of 2 GPUs each, and 6 GPUs take 2"):
        allocate_gpus(resources(engines=3, **asked), 0, (3, 3))


def test_shares_go_where_ray_puts_them():
    """Actors of these shares, started one after the other on a Ray 2.60 of four GPUs, got these (ray.get_gpu_ids)."""
    free_resources = FreeResources([Gpu(node=0) for _ in range(4)], cpus=[7.0])
    taken = [free_resources.take(ActorResources(gpus=gpus)) for gpus in (0.3, 0.3, 0.3, 0.3, 0.5, 1, 0.4)]
    assert [[next(i for i, c in enumerate(free_resources.gpus) if c is gpu) for gpu in gpus] for gpus in taken] == [
        [0], [0], [0], [1], [1], [2], [3],
    ]  # fmt: skip


def test_all_actors_on_one_gpu():
    """0.3 for the engine and 0.4 for full leave a shared GPU of 0.3: one trainer of 0.25 and the trunk."""
    asked = resources(engine={"gpus": 0.3}, trainer={"gpus": 0.25}, full_trainer={"gpus": 0.4})
    found = allocate_gpus(asked, 1, (1,))
    assert (found.whole_runs, found.layer_runs) == (1, 1)
    assert found.shared_gpus == (pytest.approx(0.3),)
    too_large = resources(engine={"gpus": 0.35}, trainer={"gpus": 0.25}, full_trainer={"gpus": 0.4})
    with pytest.raises(PlacementError, match="^resources.trainer: a layer run's 1 x 0.25 and 0.05 of a GPU"):
        allocate_gpus(too_large, 1, (1,))


def test_trainers_around_an_engine_on_every_gpu():
    """Actors and placement groups of these shares got these GPUs from a Ray 2.60 of four: an engine each, two trainers
    and the base's weights on each of three, full on the fourth, and two more trainers there when it had ended."""
    asked = resources(engines=4, engine={"gpus": 0.55}, trainer={"gpus": 0.2}, full_trainer={"gpus": 0.4})
    found = allocate_gpus(asked, 1, (4,))
    assert [gpu.engines for gpu in found.gpus] == [[0], [1], [2], [3]]
    assert sorted((gpu.whole_ranks, gpu.layer_ranks) for gpu in found.gpus) == [(0, 2), (0, 2), (0, 2), (1, 0)]
    assert found.shared_gpus == (0.45, 0.45, 0.45)
    assert (found.whole_runs, found.layer_runs, found.joining, found.last_layer_runs) == (1, 6, (0.45,), 8)


def test_whole_and_layer_runs_take_turns_where_there_is_one_gpu_for_both():
    found = allocate_gpus(resources(engine={"gpus": 1}, trainer={"gpus": 1}), 1, (2,))
    assert (found.whole_runs, found.layer_runs, found.in_turn, found.runs) == (1, 1, True, 1)
    assert (found.gpus[1].whole_ranks, found.gpus[1].layer_ranks) == (1, 1)


def test_as_many_full_runs_at_a_time_as_leave_a_layer_run():
    """Three seeds and four GPUs: engine, two full runs, one shared GPU."""
    found = allocate_gpus(resources(engine={"gpus": 1}, trainer={"gpus": 0.45}, full_trainer={"gpus": 1}), 3, (4,))
    assert (found.whole_runs, found.layer_runs) == (2, 2)


def test_ranks_of_a_layer_run_sit_where_there_is_room():
    """One on each of six GPUs, the seventh is the engine's: two runs of three ranks."""
    assert allocate_gpus(resources(engine={"gpus": 1}, trainer={"gpus": 0.6}, trainer_ranks=3), 0, (7,)).layer_runs == 2


# -- placement_problems ---------------------------------------------------------------------------------------------


def plan_with(name: str = "qwen3-1.7b-numinamath-grpo-8gpu", **changes) -> Plan:
    """A preset with other fields: sections as dictionaries, merged."""
    spec = load_spec(FOLDER / f"{name}.yaml").model_dump(mode="json")
    overrides = {k: spec[k] | v if isinstance(spec[k], dict) else v for k, v in changes.items()}
    return make_plan(load_spec(FOLDER / f"{name}.yaml", overrides), fetch=False)


def problems(plan: Plan, gpus: float, cpus: float, nodes: int = 1) -> list[str]:
    return placement_problems(plan, [{"CPU": cpus / nodes, "GPU": gpus / nodes}] * nodes)


def spanning(gpus: int) -> dict:
    """Changes by which engines span so many GPUs."""
    return {"rollout": {"tensor_parallel_size": gpus}}


def test_cpus_are_counted_to_the_last_one():
    """Four engines of 2 CPUs, full 2, two small actors 0.1, and at least one shared GPU of four trainers of 1 and 0.1:
    8 + 2 + 0.1 + 4.1 = 14.2."""
    plan = plan_with()
    assert problems(plan, gpus=8, cpus=14.2) == []
    (problem,) = problems(plan, gpus=8, cpus=14.1)
    assert problem == (
        "resources: the GPUs are enough, the CPUs beside them are not: each of 4 engines asks for 2 on one node, the 4 "
        "trainers around a whole GPU 4.1 together, each of the whole model's 1 ranks 2; the nodes have 14.1; lower the "
        "cpus of engine or trainers"
    )


def test_berths_take_what_cpus_there_are():
    """With 8 + 2 + 0.1 taken there are three shared GPUs from 22.4 CPUs on, two below."""
    for cpus, shared in ((22.4, 3), (22.3, 2)):
        assert len(allocate_gpus_on(plan_with(), [{"CPU": cpus, "GPU": 8.0}]).shared_gpus) == shared


def test_trainers_around_a_gpu_need_their_cpus_on_its_node():
    """Four trainers of 4 CPUs and the trunk's host are 16.1 on one node of 16, however many nodes there are."""
    plan = plan_with(resources={"trainer": {"cpus": 4, "gpus": 0.23}})
    (problem,) = problems(plan, gpus=8, cpus=128, nodes=8)
    assert "the 4 trainers around a whole GPU 16.1 together" in problem and "; the nodes have 16, 16," in problem


@pytest.mark.parametrize(
    ("changes", "gpus", "nodes", "start"),
    [
        ({}, 4, 1, "resources.trainer: a layer run's 1 x 0.23"),
        ({"resources": {"full_trainer": {"gpus": 4}}}, 16, 8, "resources.full_trainer.gpus: asks for 4 GPUs on one"),
        (spanning(4), 8, 4, "rollout.tensor_parallel_size: 4, and the largest node has 2"),
        (spanning(2), 8, 1, "resources.engine.gpus: 1, and rollout.tensor_parallel_size"),
    ],
)  # fmt: skip
def test_what_can_never_be_placed(changes, gpus, nodes, start):
    (problem,) = problems(plan_with(**changes), gpus, cpus=1000, nodes=nodes)
    assert problem.startswith(start)


def test_a_cluster_without_gpus():
    fields = [problem.split(":")[0] for problem in problems(plan_with(), gpus=0, cpus=1000)]
    assert fields == ["resources.engine.gpus", "resources.trainer.gpus", "resources.full_trainer.gpus"]


def test_a_boost_trains_the_whole_model():
    """Without a full run eight GPUs have four shared GPUs; a boost takes one of these."""
    node = {"CPU": 100.0, "GPU": 8.0}
    layers_alone, boost = (plan_with(include_full=False, combine=runs) for runs in ([], [{"boost": "best 5"}]))
    found = [allocate_gpus_on(plan, [node]) for plan in (layers_alone, boost)]
    assert [len(allocation.shared_gpus) for allocation in found] == [4, 3]
    assert [allocation.joining for allocation in found] == [(), ()]
    assert allocate_gpus_on(plan_with(), [node]).joining == (1.0,)


def test_gpus_stay_free_for_controls_of_the_whole_model():
    """They come once full has ended, as boosts do; those of a layer, or of full without training, need no such GPU."""
    node = {"CPU": 100.0, "GPU": 8.0}
    for control, joining in (
        ({"type": "supervised", "of": "full"}, ()),
        ({"type": "supervised", "of": 3}, (1.0,)),
        ({"type": "random_direction", "of": "full"}, (1.0,)),
    ):
        assert allocate_gpus_on(plan_with(controls=[control]), [node]).joining == joining


def test_the_demo_on_cpus():
    """Engine 0.5, one trainer 0.1, small actors 0.1."""
    plan = make_plan(load_spec(DEMO), fetch=False)
    assert problems(plan, gpus=0, cpus=0.7) == []
    (problem,) = problems(plan, gpus=0, cpus=0.6)
    assert problem.startswith("resources.trainer.cpus: rank 1 of a layer run's 1 asks for 0.1 CPUs on one node, and "
                              "beside 1 x 0.5 for engines the only node has 0 left")  # fmt: skip
    (problem,) = problems(plan, gpus=0, cpus=0.4)
    assert problem == "resources.engine.cpus: asks for 0.5 CPUs on one node, and the largest has 0.4"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_fit_the_cluster_that_they_are_for(path):
    """On one or eight GPUs of 141 GB they are placed, and as many runs train at a time as they ask for."""
    spec = load_spec(path)
    if not spec.resources.on_gpu():
        with pytest.raises(SpecError, match="^resources: the actors ask for no GPUs"):
            plan_on(make_plan(spec, fetch=False), parse_cluster("8xH200"))
        return
    forecast = plan_on(make_plan(spec, fetch=False), parse_cluster("1xH200" if "1gpu" in path.stem else "8xH200"))
    assert spec.resources.concurrent_runs in (None, forecast.allocation.runs)
    assert all(gpu.total < forecast.cluster.gpu.memory for gpu in forecast.memory)
