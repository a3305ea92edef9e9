"""The states of a run."""

import pytest

from layersweep.orchestrator.execution.run_state import TRANSITIONS, IllegalTransition, RunLifecycle, RunState

S = RunState
ENDS = {S.COMPLETED, S.PRUNED, S.FAILED, S.STOPPED}


def walk(*states: RunState) -> RunLifecycle:
    lifecycle = RunLifecycle("layer-03-seed0")
    for state in states:
        lifecycle.enter(state)
    return lifecycle


@pytest.mark.parametrize(
    "states",
    [
        # Two steps, then the end.
        (S.STARTING, S.GENERATING, S.UPDATING, S.SYNCING, S.GENERATING, S.UPDATING, S.SYNCING, S.FINISHING,
         S.EVALUATING, S.COMPLETED),
        # A search: scored, paused without trainers, once more in a slot, pruned at the second rung.
        (S.STARTING, S.GENERATING, S.UPDATING, S.SYNCING, S.EVALUATING, S.FINISHING, S.PAUSED_AT_RUNG, S.WAITING,
         S.STARTING, S.SYNCING, S.GENERATING, S.UPDATING, S.SYNCING, S.EVALUATING, S.FINISHING, S.PAUSED_AT_RUNG,
         S.PRUNED),
        # An engine dies, then trainers do, then too much.
        (S.STARTING, S.GENERATING, S.RECOVERING, S.GENERATING, S.UPDATING, S.RECOVERING, S.STARTING, S.RECOVERING,
         S.FAILED),
        (S.STARTING, S.STARTING, S.FINISHING, S.EVALUATING, S.COMPLETED),  # restored at its last step
        (S.STOPPED,),
        (S.COMPLETED,),
        (S.PRUNED,),
    ],
)  # fmt: skip
def test_lives_that_runs_have(states):
    assert walk(*states).state is states[-1]


@pytest.mark.parametrize(
    ("states", "illegal"),
    [
        ((), S.GENERATING),  # without trainers
        ((), S.UPDATING),
        ((S.STARTING,), S.UPDATING),  # without responses
        ((S.STARTING,), S.PRUNED),
        ((S.STARTING, S.GENERATING), S.SYNCING),  # nothing new to sync
        ((S.STARTING, S.GENERATING, S.UPDATING), S.GENERATING),  # with stale weights
        ((S.STARTING, S.GENERATING, S.UPDATING, S.SYNCING), S.COMPLETED),  # not scored
        ((S.STARTING, S.EVALUATING), S.PAUSED_AT_RUNG),  # not saved
        ((S.STARTING, S.GENERATING, S.RECOVERING), S.UPDATING),  # with experience that may be lost
    ],
)
def test_lives_that_none_has(states, illegal):
    lifecycle = walk(*states)
    with pytest.raises(IllegalTransition, match=f"layer-03-seed0: {illegal.name} cannot follow {lifecycle.state.name}"):
        lifecycle.enter(illegal)
    assert lifecycle.state is (states[-1] if states else S.WAITING)


@pytest.mark.parametrize("end", sorted(ENDS, key=lambda state: state.name))
def test_nothing_follows_an_end(end):
    lifecycle = walk(end)
    for state in RunState:
        with pytest.raises(IllegalTransition):
            lifecycle.enter(state)


def test_every_state_can_be_reached_and_left():
    assert set(TRANSITIONS) == set(RunState)
    assert set().union(*TRANSITIONS.values()) == set(RunState)
    assert {state for state, follow in TRANSITIONS.items() if not follow} == ENDS
    assert all({S.RECOVERING, S.FAILED, S.STOPPED} <= TRANSITIONS[state] for state in RunState if state.at_work)


def test_the_tables_know_four_statuses():
    expected = {S.COMPLETED: "completed", S.PRUNED: "pruned", S.FAILED: "failed"}
    assert {state: state.status for state in RunState} == dict.fromkeys(RunState, "running") | expected


def test_every_change_is_watched():
    seen = []
    lifecycle = RunLifecycle("full-seed0", lambda run, state: seen.append((run, state)))
    lifecycle.enter(S.STARTING)
    with pytest.raises(IllegalTransition):
        lifecycle.enter(S.UPDATING)
    lifecycle.enter(S.FAILED)
    assert seen == [("full-seed0", S.STARTING), ("full-seed0", S.FAILED)]
