"""Controls of a sweep on the virtual clock: what they train on, what they are made of, how they fail."""

from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import ray

from layersweep.orchestrator.spec.controls import RandomDirection, Supervised
from layersweep.workers.storage.run_store import RunStore
from tests.orchestrator.execution.test_driver_scale import FREE, TIMES
from tests.orchestrator.execution.test_run_controller import Fault, completed, died, steps_of
from tests.simulations.driver_scale import simulate, study
from tests.simulations.stand_ins import World

OWN = {"base-seed0", "full-seed0", "layer-00-seed0", "layer-01-seed0"}
SUPERVISED, DIRECTION = "layer-01@supervised-seed0", "layer-00@random-direction-seed0"
CONTROLS = (
    Supervised(type="supervised", of=("layer-01",)), RandomDirection(type="random_direction", of=("layer-00",))
)  # fmt: skip


def sweep(folder, controls=CONTROLS, faults=None) -> World:
    plan = study(
        str(folder), 1, 3, layers=2, resources={"engines": 1}, recovery={"patience": 300, "checkpoint_every": 1}
    )
    plan = replace(plan, spec=plan.spec.model_copy(update={"controls": controls}))
    world = World(16, TIMES, FREE, folder=plan.folder, faults=faults)
    simulate(plan, world, worked=lambda world: 0.0, limit=50_000)
    return world


def test_a_supervised_control_trains_on_the_base_s_responses(tmp_path):
    """The base's batches 1 and 2, at version 0, beside the first that a seed's runs share; every other run's are its
    own. A random direction trains on none."""
    asked = Counter()

    async def note(worker, engine, run, version, seed, step):
        asked[run, version, step] += 1

    world = sweep(tmp_path, faults={"rollout": note})
    assert completed(world) == OWN | {SUPERVISED, DIRECTION}
    own = {(run, step, step): 1 for run in OWN - {"base-seed0"} for step in (1, 2)}
    assert asked == own | {(None, 0, step): 1 for step in range(3)}
    assert steps_of(world, SUPERVISED) == [0, 1, 2] and steps_of(world, DIRECTION) == []


def test_a_direction_is_made_once_its_run_has_finished(tmp_path):
    made = []

    async def note(maker, variant, seed, folder):
        made.append((variant, seed, folder, world_steps()))

    world = None

    def world_steps():
        return Counter(run for run, _ in recorded)

    recorded = []

    async def record(collector, selection, seed, step, row):
        recorded.append((f"{selection}-seed{seed}", step))

    world = sweep(tmp_path, faults={"write_overlay": note, "record_step": record})
    ((variant, seed, folder, steps),) = made
    assert variant.name == "layer-00@random-direction" and seed == 0
    assert (variant.changes[0].selection, variant.changes[0].random) == ("layer-00", True)
    assert folder.endswith(f"overlays/{DIRECTION}") and steps["layer-00-seed0"] == 3
    assert world.statuses[DIRECTION][0] == "completed"


@pytest.mark.parametrize("method", ["write_overlay", "load"])
def test_a_direction_that_cannot_be_made_or_served_fails_alone(tmp_path, method):
    error = ray.exceptions.RayTaskError(method, "", OSError("No space left on device"))
    fault = Fault(None, error, times=50)
    world = sweep(tmp_path, faults={method: fault})
    status, reason = world.statuses[DIRECTION]
    assert status == "failed" and "No space left on device" in reason
    assert completed(world) == OWN | {SUPERVISED}


def test_an_engine_that_dies_while_a_direction_is_scored(tmp_path):
    """Its replacement loads the overlay again."""
    fault = Fault(DIRECTION, died(), hurts=lambda engine: setattr(engine, "dead", True))
    world = sweep(tmp_path, faults={"load": fault})
    assert fault.failed == 1 and world.killed["Engine"] == 1
    assert completed(world) == OWN | {SUPERVISED, DIRECTION}


def test_no_direction_without_the_run_it_is_as_long_as(tmp_path):
    error = ray.exceptions.RayTaskError("update", "", ValueError("loss is nan"))
    world = sweep(tmp_path, faults={"update": Fault("layer-00-seed0", error, times=50)})
    assert world.statuses[DIRECTION] == ("failed", "NothingToMakeFrom: layer-00 of seed 0 has not completed")
    assert world.calls["write_overlay"] == 0 and SUPERVISED in completed(world)


def test_what_was_made_is_not_made_again(tmp_path):
    """Of three steps; it is once its run has been trained for more."""
    folder = None

    async def note(maker, variant, seed, target):
        nonlocal folder
        folder = target.rpartition("/overlays/")[0]

    sweep(tmp_path, faults={"write_overlay": note})
    store = RunStore(folder, DIRECTION)
    store.write_metadata({"selection": "layer-00@random-direction", "status": "completed"})
    store.write_scores(2, "selection", "math", pd.DataFrame({"score": [1.0]}))
    assert sweep(tmp_path).calls["write_overlay"] == 1
    store.write_scores(3, "selection", "math", pd.DataFrame({"score": [1.0]}))
    again = sweep(tmp_path)
    assert again.calls["write_overlay"] == 0 and DIRECTION not in again.statuses


def test_metadata_that_cannot_be_written_fails_the_direction_alone(tmp_path):
    async def full_disk(collector, selection, seed, **changes):
        if "random-direction" in selection:
            raise ray.exceptions.RayTaskError("update_run", "", OSError("No space left on device"))

    world = sweep(tmp_path, faults={"update_run": full_disk})
    assert DIRECTION not in world.statuses and completed(world) == OWN | {SUPERVISED}
