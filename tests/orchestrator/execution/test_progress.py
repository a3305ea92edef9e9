"""What a person sees of a sweep while it runs."""

import re
from types import SimpleNamespace

from layersweep.orchestrator.execution.context import SweepContext
from layersweep.orchestrator.execution.progress import Progress
from layersweep.orchestrator.execution.run_state import RunState


def test_a_line_names_some_runs_at_work(capsys):
    """Of 20 runs of 3 steps ten have made one, one was done before and one makes all: 16 of 60, 11 runs at work."""
    progress = Progress([f"run-{k}" for k in range(20)], steps=3, interval=0.0)
    metrics = {"reward_mean": 0.5, "tokens": 10}
    for k in range(10):
        progress.entered(f"run-{k}", RunState.UPDATING)
        progress.stepped(f"run-{k}", 1, metrics, 1.0)
    progress.already("run-19", RunState.COMPLETED)
    progress.entered("run-10", RunState.UPDATING)
    for step in (1, 2, 3):
        progress.printed = 0.0  # long ago: a line is due
        progress.stepped("run-10", step, metrics, 1.0)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"step 16/60, about \d+ s left; at work: run-0 1/3 0.50, .*run-7 1/3 0.50 and 3 more$", last)


def test_a_run_without_a_reward_yet_has_none_in_its_line(capsys):
    progress = Progress(["one", "two"], steps=2, interval=0.0)
    for run in ("one", "two"):
        progress.entered(run, RunState.GENERATING)
    progress.printed = 0.0
    progress.stepped("one", 1, {"reward_mean": 0.25, "tokens": 10}, 1.0)
    assert capsys.readouterr().err.splitlines()[-1].endswith("at work: one 1/2 0.25, two 0/2")


def test_a_search_counts_the_steps_that_it_will_take(capsys):
    """Three runs of 8 steps, two of which are to end after 2: 12 steps and not 24, before and after these end. One that
    an earlier start has ended counts no more."""
    events = []
    progress = Progress(["a", "b", "c", "d"], steps=8, interval=1e9, listen=events.append, spared=12 + 8)
    metrics = {"reward_mean": 0.25, "tokens": 10}
    progress.already("d", RunState.PRUNED)
    for run, steps in (("a", 8), ("b", 2), ("c", 2)):
        for step in range(1, steps + 1):
            progress.stepped(run, step, metrics, 1.0)
        progress.entered(run, RunState.COMPLETED if run == "a" else RunState.PRUNED)
        progress.ended(run, None)
    assert {event.sweep_steps for event in events} == {12} and events[-1].sweep_step == 12


def test_a_finished_run_is_not_named(capsys):
    progress = Progress(["one", "two"], steps=1, interval=0.0)
    for run in ("one", "two"):
        progress.entered(run, RunState.EVALUATING)
        progress.stepped(run, 1, {"reward_mean": 0.25, "tokens": 10}, 1.0)
    progress.printed = 0.0
    progress.entered("one", RunState.COMPLETED)
    progress.ended("one", None)
    assert capsys.readouterr().err.splitlines()[-1].endswith("at work: two 1/1 0.25")


def test_what_actors_have_to_tell_is_said_once():
    """Two runs share a result, and an evaluation has something new; most have nothing."""
    said = []
    context = SimpleNamespace(told=set(), progress=SimpleNamespace(say=said.append))
    for notices in (["a reward fails"], ["a reward fails"], None, [], ["a reward fails", "another does"]):
        SweepContext.tell(context, notices)
    assert said == ["a reward fails", "another does"]
