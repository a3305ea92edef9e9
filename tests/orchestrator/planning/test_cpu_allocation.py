"""Which node takes whom, counted by hand."""

from pathlib import Path

import pytest

from layersweep.cli import DEMO
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.cpu_allocation import (
    UNLIMITED_RANKS,
    CpuAllocation,
    GangRequest,
    allocate_cpus,
    first_that_does_not_fit,
)
from layersweep.orchestrator.planning.placement import all_runs_fit, placement_problems, preferred_nodes
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.load import load_spec

NONE = GangRequest(0, 1.0)


def demo(**resources) -> Plan:
    """Six layers and full."""
    return make_plan(load_spec(Path(DEMO), {"resources": resources, "seeds": [0]}), fetch=False)


def nodes(*cpus: float) -> list[dict[str, float]]:
    return [{"CPU": count} for count in cpus]


ENGINES = {"engines": 2, "engine": {"cpus": 0.55}, "trainer": {"cpus": 0.9}}


def test_totals_are_not_enough():
    """Two engines of 0.55 and a rank of 0.9 are 2.1 with the small actors: no two nodes of 1.05 take them, as two
    engines do not share one, and beside one there is no room for the rank. A third node of 0.9 does."""
    (problem,) = placement_problems(demo(**ENGINES), nodes(1.05, 1.05))
    assert problem == (
        "resources.trainer.cpus: rank 1 of a layer run's 1 asks for 0.9 CPUs on one node, and beside 2 x 0.55 for "
        "engines the freest of 2 nodes has 0.5 left; lower the cpus of engine or trainers, or add nodes"
    )
    assert placement_problems(demo(**ENGINES), nodes(1.05, 1.05, 0.9)) == []


def test_all_ranks_of_a_crew_are_counted():
    """Beside an engine on the first node there is one rank on each of the others."""
    asked = {"engine": {"cpus": 1.9}, "trainer": {"cpus": 0.9}, "full_trainer_ranks": 2}
    assert placement_problems(demo(**asked, trainer_ranks=2), nodes(2, 1, 1)) == []
    (problem,) = placement_problems(demo(**asked, trainer_ranks=3), nodes(2, 1, 1))
    assert problem.startswith("resources.trainer.cpus: rank 3 of a layer run's 3 asks for 0.9 CPUs")
    (problem,) = placement_problems(demo(**asked | {"full_trainer_ranks": 3}), nodes(2, 1, 1))
    assert problem.startswith("resources.trainer.cpus: rank 3 of the whole model's 3 asks for 0.9 CPUs")


def test_an_engine_without_a_node():
    (problem,) = placement_problems(demo(engines=3, engine={"cpus": 0.6}), nodes(1, 1))
    assert problem.startswith("resources.engine.cpus: engine 3 of 3 asks for 0.6 CPUs on one node, and")


def test_engines_go_where_they_leave_room():
    """Two of 0.6: one on each node would leave 0.4 and 0.6, and no room for a rank of 1; both fit on the larger."""
    assert allocate_cpus((1.0, 1.2), GangRequest(2, 0.6), NONE, GangRequest(1, 1.0), NONE) == CpuAllocation(
        (1, 1), (), 1
    )
    two = demo(engines=2, engine={"cpus": 0.6}, trainer={"cpus": 1})
    assert preferred_nodes(two, nodes(1.0, 1.3)) == (
        (1, 1),
        (1, 1),
    )  # the small actors too would be in the trainer's way
    assert preferred_nodes(two, nodes(2.3)) == ((), ())


def test_one_layout_of_engines_serves_runs_of_both_kinds():
    """Nodes of 2 and 3, an engine of 1: on the first it leaves 1 + 3, on the second 2 + 2. A layer rank of 3 has a
    place in the former alone, two whole-model ranks of 2 in the latter alone: either is possible, both are not."""
    engine, layer, whole = GangRequest(1, 1.0), GangRequest(1, 3.0), GangRequest(2, 2.0)
    assert allocate_cpus((2.0, 3.0), engine, NONE, layer, NONE).engine_nodes == (0,)
    assert allocate_cpus((2.0, 3.0), engine, NONE, GangRequest(1, 1.0), whole).engine_nodes == (1,)
    assert allocate_cpus((2.0, 3.0), engine, NONE, layer, whole) is None


def test_room_for_layer_ranks_is_counted_by_node():
    """Of 1.5 CPUs each node takes one rank of 0.9, not five of six together; an engine of 0.5 shares a node with one.
    Of two engines on nodes with room to spare each has its own."""
    assert allocate_cpus((1.5,) * 4, GangRequest(1, 0.5), NONE, GangRequest(1, 0.9), NONE).layer_ranks == 4
    assert allocate_cpus((4.0, 4.0), GangRequest(2, 1.0), NONE, GangRequest(1, 1.0), NONE) == CpuAllocation(
        (0, 1), (), 6
    )


def test_who_asks_for_nothing_has_a_place_anywhere():
    assert allocate_cpus((1.0,), GangRequest(1, 0.5), NONE, GangRequest(2, 0.0), NONE) == CpuAllocation(
        (0,), (), UNLIMITED_RANKS
    )


def test_the_first_without_a_place():
    """0.6 goes to 0.7, the fullest that has room; then 0.5 to 1.0; 0.6 finds 0.5 and 0.1."""
    assert first_that_does_not_fit([1.0, 0.7], [("a", 0.6), ("b", 0.5), ("c", 0.6)]) == ("c", 0.6, pytest.approx(0.5))
    assert first_that_does_not_fit([1.0, 0.7], [("a", 0.6), ("b", 0.5)]) is None


def test_whether_all_runs_train_at_once():
    """The demo's six layers and full, ranks of 1, engine 0.5 and small actors 0.1: seven CPUs and 0.6. Ranks of 1.5 for
    full take the places of two layer ranks each."""
    asked = {"engine": {"cpus": 0.5}, "trainer": {"cpus": 1}}
    assert all_runs_fit(demo(**asked), nodes(7.6)) and not all_runs_fit(demo(**asked), nodes(7.5))
    assert all_runs_fit(demo(**asked, full_trainer={"cpus": 1.5}), nodes(8.6))
    assert not all_runs_fit(demo(**asked, full_trainer={"cpus": 1.5}), nodes(7.6))
    assert not all_runs_fit(demo(**asked), nodes(0.5))
