"""Ray and engines from one sweep of a process to the next."""

import contextlib

import pytest

from layersweep.orchestrator.execution import sweep_session
from layersweep.orchestrator.execution.sweep_session import SweepSession
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.engine_facts import same_engines
from layersweep.orchestrator.spec.load import parse_spec
from tests.helpers.specs import demo


def plan_of(name: str, **changes):
    return make_plan(parse_spec(demo(name=name, **changes)))


class Rays:
    """What happens to Ray, in order; engines answer, or not."""

    def __init__(self, monkeypatch, answers: bool = True):
        self.said = []
        monkeypatch.setattr(sweep_session, "connected", self.connected)
        monkeypatch.setattr(SweepSession, "_engines_answer", lambda session, plan: answers)

    @contextlib.contextmanager
    def connected(self, address, namespace, gpu):
        self.said.append(f"begins for {namespace}")
        yield {"of": namespace}
        self.said.append("ends")


def carried_out(session: SweepSession, plan, leaves: bool) -> tuple[str, list[str]]:
    """A sweep that leaves engines, or none: the Ray that it ran on, and the engines that it took over."""
    with session.connected(plan):
        taken = session.take_engines()
        if leaves:
            session.engines = taken or {"Engine-0": f"engine of {plan.spec.name}"}
        return session.environment["of"], list(taken.values())


def test_engines_go_on_to_sweeps_that_need_the_same(monkeypatch, capsys):
    """Of four sweeps the third has another dtype of rollouts: one Ray for the first two, and one each for the others,
    each ended as soon as nobody needs it."""
    rays = Rays(monkeypatch)
    plans = [plan_of("a"), plan_of("b", algorithm="rloo"), plan_of("c", rollout__dtype="bfloat16"), plan_of("d")]
    with SweepSession(None, plans) as session:
        found = [carried_out(session, plan, leaves=True) for plan in plans]
    assert [ray.removeprefix("layersweep-") for ray, _ in found] == ["a", "a", "c", "d"]
    assert [engines for _, engines in found] == [[], ["engine of a"], [], []]
    assert rays.said == [f"begins for layersweep-{name}" if name else "ends" for name in ("a", "", "c", "", "d", "")]
    assert capsys.readouterr().err == "layersweep: engines of a go on\n"


@pytest.mark.parametrize("leaves, answers", [(False, True), (True, False)])
def test_a_ray_of_their_own_after_a_sweep_that_failed_or_whose_engines_died(monkeypatch, leaves, answers):
    rays = Rays(monkeypatch, answers)
    plans = [plan_of("a"), plan_of("b")]
    with SweepSession(None, plans) as session:
        found = [carried_out(session, plan, leaves) for plan in plans]
    assert found == [("layersweep-a", []), ("layersweep-b", [])]
    assert rays.said == ["begins for layersweep-a", "ends", "begins for layersweep-b", "ends"]


def test_ray_ends_with_an_error_and_where_sweeps_are_left_out(monkeypatch):
    """An error, as of a cluster without room; and a last sweep for which there was nothing to do."""
    rays = Rays(monkeypatch)
    plans = [plan_of("a"), plan_of("b")]
    with SweepSession(None, plans) as session, pytest.raises(ValueError), session.connected(plans[0]):
        raise ValueError
    with SweepSession(None, plans) as session:
        carried_out(session, plans[0], leaves=True)
        assert rays.said[2:] == ["begins for layersweep-a"]
    assert rays.said == ["begins for layersweep-a", "ends"] * 2


def test_engines_serve_what_they_were_started_for(tmp_path):
    """Algorithm, steps, seeds and staleness are no engine's business; its model, the tiny model's task, its settings
    and place are, and whether runs of the whole model had it checked for them."""
    one = plan_of("one")
    same = [
        {"algorithm": "rloo"},
        {"training__steps": 9},
        {"seeds": [4]},
        {"layers": [1]},
        {"rollout__staleness": 1},
    ]
    others = [
        {"rollout__max_num_seqs": 7}, {"training__dtype": "bfloat16"}, {"resources": {"engines": 2}},
        {"model__warmup_steps": 9}, {"include_full": False},
    ]  # fmt: skip
    assert all(same_engines(one, plan_of("other", **change)) for change in same)
    assert not any(same_engines(one, plan_of("other", **change)) for change in others)
