"""Gangs: all ranks of a run are placed together, or none."""

import asyncio
from pathlib import Path

import pytest
from ray.util import remove_placement_group

from layersweep.cli import DEMO
from layersweep.orchestrator.execution.ray_session import start_ray
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.spec.load import load_spec
from layersweep.workers.actors.ray_placement import bundle_of, gang
from layersweep.workers.config import ActorResources


@pytest.mark.slow
def test_a_gang_is_placed_together_or_not_at_all():
    """Two gangs of two ranks on three CPUs: one has its CPUs, the other takes none until the first are free."""
    import ray

    class Rank:
        def group(self) -> str:
            return ray.get_runtime_context().get_placement_group_id()

    start_ray("local", num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        needs = ActorResources(cpus=1)
        groups = [gang(needs, 2), gang(needs, 2)]
        ranks = [[ray.remote(Rank).options(num_cpus=1, scheduling_strategy=bundle_of(group, rank)).remote()
                  for rank in range(2)] for group in groups]  # fmt: skip
        answers = [[rank.group.remote() for rank in gang_ranks] for gang_ranks in ranks]
        done, _ = ray.wait([answer for gang_ranks in answers for answer in gang_ranks], num_returns=2, timeout=60)
        ready, late = (0, 1) if answers[0][0] in done else (1, 0)
        assert set(done) == set(answers[ready])
        assert ray.available_resources()["CPU"] == 1
        for rank in ranks[ready]:
            ray.kill(rank)
        remove_placement_group(groups[ready])
        assert ray.get(answers[late], timeout=60) == [groups[late].id.hex()] * 2
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.long
def test_a_crew_that_waits_for_two_places_is_not_overtaken(tmp_path):
    """Both of two CPUs are taken when full asks for two ranks of 0.95, and after it a layer for 0.9. Once one CPU is
    free it stays free; once both are, full has them, and then the layer."""
    import ray

    from layersweep.orchestrator.execution.actors import SweepActors

    class Other:
        def alive(self) -> None:
            pass

    async def scenario(actors: SweepActors) -> None:
        others = [ray.remote(Other).options(num_cpus=1).remote() for _ in range(2)]
        ray.get([other.alive.remote() for other in others])
        full, layer = next(run for run in plan.runs if run.selection.trains_all), plan.runs[-1]
        waiting = [asyncio.create_task(actors.create_trainers(run)) for run in (full, layer)]
        await asyncio.sleep(2)
        ray.kill(others[0])
        await asyncio.sleep(5)
        assert ray.available_resources()["CPU"] == 1 and not any(task.done() for task in waiting)
        ray.kill(others[1])
        await asyncio.wait_for(waiting[0], 60)
        assert not waiting[1].done() and ray.available_resources()["CPU"] == pytest.approx(0.1)
        await (await waiting[0]).stop()
        await (await asyncio.wait_for(waiting[1], 60)).stop()

    resources = {
        "engine": {"cpus": 0},
        "trainer": {"cpus": 0.9},
        "full_trainer": {"cpus": 0.95},
        "full_trainer_ranks": 2,
    }
    plan = make_plan(load_spec(DEMO, {"resources": resources, "output": str(tmp_path)}), fetch=False)
    start_ray("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        unused = (None,) * 4  # engines, collector, rollout worker, model
        asyncio.run(scenario(SweepActors(plan, {}, *unused)))
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_cluster_that_has_lost_its_gpus_keeps_a_room(tmp_path):
    """For the run that waits for others to come; what can never start was refused before."""
    import ray

    from layersweep.orchestrator.execution.actors import max_concurrent_runs

    spec = load_spec(Path(DEMO).parent / "qwen3-1.7b-numinamath-grpo-8gpu.yaml", {"output": str(tmp_path)})
    resources = spec.resources.model_copy(update={"concurrent_runs": None})
    plan = make_plan(spec.model_copy(update={"resources": resources}), fetch=False)
    start_ray("local", num_cpus=100, num_gpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        assert max_concurrent_runs(plan) == 1
    finally:
        ray.shutdown()


def test_handles_are_for_gpus_and_arrays_keep_bfloat16():
    import torch

    from layersweep.policies.model.tensor_transport import to_arrays, to_handles, to_tensors

    weights = {"a": torch.randn(3, 2), "b": torch.randn(4).to(torch.bfloat16)}
    back = to_tensors(to_arrays(weights))
    assert all(torch.equal(back[name], weight) and back[name].dtype == weight.dtype for name, weight in weights.items())
    with pytest.raises(ValueError, match="a is not on a GPU"):
        to_handles(weights)
