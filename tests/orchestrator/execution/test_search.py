"""A search's runs under faults, as in test_run_controller: they pause at rungs, and some go on."""

import pytest
import ray

from layersweep.orchestrator.execution.decisions import Decisions
from tests.orchestrator.execution.test_run_controller import FULL, Fault, completed, steps_of, sweep, unscored_base
from tests.simulations.stand_ins import World


def test_a_search_without_a_score_of_the_base_decides_nothing(tmp_path):
    """The layers fail at the first rung, with the reason; full, which no rung decides about, completes."""
    world = sweep(tmp_path, steps=6, layers=4, search={"budget": 0.6}, faults={"evaluation": unscored_base})
    for layer in range(4):
        status, reason = world.statuses[f"layer-{layer:02d}-seed0"]
        assert status == "failed" and reason.endswith("the base has no score: ValueError: no reward")
    assert completed(world) == {FULL}


def searched(tmp_path, monkeypatch, choose, **changes) -> World:
    """A search over four layers, six steps; `choose` decides in place of their scores."""
    monkeypatch.setattr(Decisions, "surviving_layers", choose)
    return sweep(tmp_path, steps=6, layers=4, search={"budget": 0.6}, **changes)


@pytest.mark.parametrize("concurrent", [None, 1, 2])
def test_paused_runs_give_their_slots_up_and_survivors_take_them_back(tmp_path, monkeypatch, concurrent):
    """The highest layers survive; with one slot, too, all runs meet at each rung."""
    asked = []

    async def choose(decisions, rung, layers):
        asked.append((rung.step, layers, rung.keep))
        return layers[-rung.keep :]

    world = searched(tmp_path, monkeypatch, choose, concurrent=concurrent)
    assert asked[0][1] == [0, 1, 2, 3]
    survivors = asked[-1][1][-asked[-1][2] :]
    for layer in range(4):
        ends = [step for step, layers, keep in asked if layer in layers and layer not in layers[-keep:]]
        expected = ("completed", 6) if layer in survivors else ("pruned", ends[0])
        run = f"layer-{layer:02d}-seed0"
        assert (world.statuses[run][0], len(steps_of(world, run))) == expected
    assert world.most_runs <= (concurrent or 5)


def test_a_rung_that_cannot_be_decided_fails_its_runs_and_no_slot_is_released_twice(tmp_path, monkeypatch):
    """One slot: each layer run has given it up when the decision fails. Full takes it once, as do they after it."""

    async def choose(decisions, rung, layers):
        raise ValueError("no scores")

    world = searched(tmp_path, monkeypatch, choose, concurrent=1)
    for layer in range(4):
        status, reason = world.statuses[f"layer-{layer:02d}-seed0"]
        assert status == "failed" and reason.endswith("ValueError: no scores")
    assert world.most_runs == 1 and completed(world) == {"base-seed0", FULL}


def test_a_run_that_fails_before_a_rung_is_not_waited_for(tmp_path, monkeypatch):
    asked = []

    async def choose(decisions, rung, layers):
        asked.append(layers)
        return layers[-rung.keep :]

    fault = Fault("layer-02-seed0", ray.exceptions.RayTaskError("update", "", ValueError("loss is nan")))
    world = searched(tmp_path, monkeypatch, choose, faults={"update": fault})
    assert world.statuses["layer-02-seed0"][0] == "failed" and asked[0] == [0, 1, 3]
