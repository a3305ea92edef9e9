"""Runs under faults: the real driver and controllers over stand-ins, on the virtual clock (tests/simulations).

16 GPUs, one engine, full on 4 trainers, two layers on shared GPUs. A rollout takes 10 s, an evaluation 40, an update 20
(of full 16), a push 1, the start of trainers 5.
"""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
import ray

from layersweep.orchestrator.execution import learning_rate_trials
from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.spec.layers import LayerSearch
from layersweep.workers.config import LearningRates
from layersweep.workers.storage.run_store import RunStore
from tests.orchestrator.execution.test_driver_scale import FREE, TIMES
from tests.simulations.driver_scale import simulate, study
from tests.simulations.stand_ins import World

LAYER, OTHER, FULL = "layer-00-seed0", "layer-01-seed0", "full-seed0"
FOREVER = 1e9


def sweep(folder, steps=2, search=None, layers=2, concurrent=None, faults=None, world=None, **recovery) -> World:
    """A sweep to its end, its checkpoints in `folder`; what happened."""
    recovery = {"patience": 300, "checkpoint_every": 1} | recovery
    plan = study(
        str(folder), 1, steps, layers=layers, resources={"engines": 1, "concurrent_runs": concurrent}, recovery=recovery
    )
    if search:
        plan = replace(plan, spec=plan.spec.model_copy(update={"layers": LayerSearch(search=search)}))
    world = World(16, TIMES, FREE, folder=plan.folder, faults=faults)
    simulate(plan, world, worked=lambda world: 0.0, limit=50_000)
    return world


def steps_of(world: World, run: str) -> list[int]:
    """Steps recorded of a run, in order."""
    return [step for name, step in world.recorded if name == run]


def completed(world: World) -> set[str]:
    return {run for run, (status, _) in world.statuses.items() if status == "completed"}


class Fault:
    """Fails calls about one run.

    Args:
        run: name; None takes any.
        error: raised, after what it does to the actor.
        times: how often; every further call works.
        after: calls about the run that work before.
    """

    def __init__(self, run, error, times=1, after=0, hurts=lambda actor: None):
        self.run, self.error, self.times, self.after, self.hurts = run, error, times, after, hurts
        self.calls = self.failed = 0

    async def __call__(self, actor, *args):
        if self.run not in (None, getattr(actor, "run", None), *args):
            return
        self.calls += 1
        assert self.calls < 100, "called again and again"
        if self.after < self.calls <= self.after + self.times:
            self.failed += 1
            self.hurts(actor)
            raise self.error


def dies(actor) -> None:
    actor.dead = True


def died() -> Exception:
    return ray.exceptions.ActorDiedError()


def test_a_trainer_that_dies_repeats_the_steps_since_its_checkpoint(tmp_path):
    """In the update of step 1, after the checkpoint of step 0: three updates are begun, each step is recorded once."""
    fault = Fault(LAYER, died(), after=1, hurts=dies)
    world = sweep(tmp_path, faults={"update": fault})
    assert fault.calls == 3 and steps_of(world, LAYER) == [0, 1]
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER}


def test_without_a_checkpoint_it_begins_again(tmp_path):
    fault = Fault(LAYER, died(), after=1, hurts=dies)
    world = sweep(tmp_path, faults={"update": fault}, checkpoint_every=5)
    assert fault.calls == 4 and steps_of(world, LAYER) == [0, 0, 1]
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER}


@pytest.mark.parametrize("method", ["problem", "restore", "start"])
def test_trainers_that_could_not_restore_their_checkpoint_do_not_train(tmp_path, method):
    """They answer again, at step 0, while the run stands after step 0: others are started for it."""
    dead, late = Fault(LAYER, died(), after=1, hurts=dies), Fault(LAYER, ray.exceptions.ActorUnavailableError("", None))
    late.after = 1 if method == "start" else 0
    world = sweep(tmp_path, faults={"update": dead, method: late})
    assert late.failed == 1 and steps_of(world, LAYER) == [0, 1] and LAYER in completed(world)
    assert not +world.trainers


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_run_fails_after_its_retries_and_the_others_go_on(tmp_path, retries):
    """One attempt, and as many more as there are retries."""
    fault = Fault(LAYER, died(), times=50, hurts=dies)
    world = sweep(tmp_path, faults={"update": fault}, retries=retries)
    assert fault.calls == retries + 1
    status, reason = world.statuses[LAYER]
    assert status == "failed" and "The actor died unexpectedly" in reason
    assert completed(world) == {"base-seed0", FULL, OTHER}


def test_retries_count_failures_without_a_new_step_between_them(tmp_path):
    """Updates fail, work, fail, work: one retry is enough for two steps."""
    calls = Counter()

    async def every_other(trainer, *args):
        if trainer.run == LAYER:
            calls[LAYER] += 1
            if calls[LAYER] % 2:
                trainer.dead = True
                raise died()

    world = sweep(tmp_path, faults={"update": every_other}, retries=1)
    assert calls[LAYER] == 4 and steps_of(world, LAYER) == [0, 1] and LAYER in completed(world)


def test_an_error_of_the_run_itself_is_not_retried(tmp_path):
    fault = Fault(LAYER, ray.exceptions.RayTaskError("update", "", ValueError("loss is nan")), times=50)
    world = sweep(tmp_path, faults={"update": fault})
    assert fault.calls == 1 and world.statuses[LAYER] == ("failed", "ValueError: loss is nan")
    assert completed(world) == {"base-seed0", FULL, OTHER}


def test_an_engine_that_dies_gets_every_runs_weights_again(tmp_path):
    """Its replacement has no weights; stand-ins refuse a version that was not pushed to them. No update is repeated,
    and the step whose push failed is recorded once."""
    fault = Fault(LAYER, died(), hurts=dies)
    world = sweep(tmp_path, steps=3, faults={"push": fault})
    assert world.killed["Engine"] == 1  # replaced once, though all runs ask for it
    assert world.calls["update"] == 3 * (4 + 1 + 1)
    assert {run: steps_of(world, run) for run in (FULL, LAYER, OTHER)} == dict.fromkeys((FULL, LAYER, OTHER), [0, 1, 2])
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER}


def test_trainers_lost_between_update_and_push_take_their_step_back(tmp_path):
    """The step of the lost update is not recorded: there is no checkpoint of it, and it is made again."""
    trainers = []

    async def remember(trainer, *args):
        trainers.append(trainer)

    async def lose(engine, run, version, weights):
        if run == LAYER and version == 2 and not lost:
            lost.append(version)
            next(trainer for trainer in trainers if trainer.run == LAYER).dead = True
            raise ray.exceptions.ObjectLostError("", None, "")

    lost = []
    world = sweep(tmp_path, faults={"update": remember, "push": lose})
    assert len([trainer for trainer in trainers if trainer.run == LAYER]) == 3
    assert steps_of(world, LAYER) == [0, 1] and lost == [2]
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER}


def test_a_first_rollout_that_is_lost_is_generated_again(tmp_path):
    """The one that all runs share: each of the three finds it lost and has it replaced, the first for all."""
    fault = Fault(None, ray.exceptions.ObjectLostError("", None, ""))
    world = sweep(tmp_path, faults={"rollout": fault})
    assert fault.failed == 1 and completed(world) == {"base-seed0", FULL, LAYER, OTHER}


def test_a_rollout_that_hangs_restarts_the_rollout_worker(tmp_path):
    async def hang(worker, engine, run, *args):
        if run == LAYER and not hung:
            hung.append(run)
            await asyncio.sleep(FOREVER)

    hung = []
    world = sweep(tmp_path, faults={"rollout": hang})
    assert world.killed["RolloutWorker"] == 1 and world.killed["Engine"] == 0
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER}


def test_an_update_that_hangs_gets_other_trainers(tmp_path):
    async def hang(trainer, *args):
        if trainer.run == LAYER and not hung:
            hung.append(trainer)
            await asyncio.sleep(FOREVER)

    hung = []
    world = sweep(tmp_path, faults={"update": hang})
    assert hung[0].dead and steps_of(world, LAYER) == [0, 1]
    assert world.killed["RolloutWorker"] == 0 and completed(world) == {"base-seed0", FULL, LAYER, OTHER}


def test_checkpoints_come_every_so_many_steps_and_at_the_end(tmp_path):
    world = sweep(tmp_path, steps=5, checkpoint_every=2)
    assert [step for run, step in world.commits if run == LAYER] == [2, 4, 5]


def test_a_trainer_lost_while_it_finishes_still_trains_all_steps(tmp_path):
    """The overlay of 5 steps is written by trainers that have done 5: those that went back to the checkpoint of step 4
    make the fifth again."""
    written = []

    async def finish(trainer, folder):
        if trainer.run == LAYER:
            written.append(trainer.steps)
            if len(written) == 1:
                trainer.dead = True
                raise died()

    world = sweep(tmp_path, steps=5, checkpoint_every=2, faults={"finish": finish})
    assert written == [5, 5] and steps_of(world, LAYER) == [0, 1, 2, 3, 4, 4]
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER}


@pytest.mark.parametrize("concurrent", [1, 2, 3])
def test_no_more_runs_train_than_there_are_slots(tmp_path, concurrent):
    world = sweep(tmp_path, concurrent=concurrent)
    assert world.most_runs == concurrent and completed(world) == {"base-seed0", FULL, LAYER, OTHER}


# -- the sweep's files ----------------------------------------------------------------------------------------


def unreadable(monkeypatch, method: str, run: str, times: float) -> list[str]:
    """Reads of a run's store that fail with what a bucket answers when it is busy; grows with each."""
    real, failed = getattr(RunStore, method), []

    def read(store):
        if store.run == run and len(failed) < times:
            failed.append(run)
            raise OSError("503 Slow Down")
        return real(store)

    monkeypatch.setattr(RunStore, method, read)
    return failed


@pytest.mark.parametrize("method", ["metadata", "records", "scored"])
def test_files_that_cannot_be_read_for_a_moment_are_read_again(tmp_path, monkeypatch, method):
    failed = unreadable(monkeypatch, method, LAYER, 2)
    world = sweep(tmp_path)
    assert len(failed) == 2 and completed(world) == {"base-seed0", FULL, LAYER, OTHER}


@pytest.mark.parametrize("method", ["metadata", "records", "scored"])
def test_files_that_cannot_be_read_at_all_fail_their_run_alone(tmp_path, monkeypatch, method):
    """Four attempts, no more: the rest of the sweep goes on and the reason says how to."""
    failed = unreadable(monkeypatch, method, LAYER, float("inf"))
    world = sweep(tmp_path)
    status, reason = world.statuses[LAYER]
    assert status == "failed" and "OSError: 503 Slow Down; `layersweep resume` goes on" in reason
    assert len(failed) == 4 and completed(world) == {"base-seed0", FULL, OTHER}


def test_a_base_that_cannot_be_scored_fails_alone(tmp_path, monkeypatch):
    unreadable(monkeypatch, "scored", "base-seed0", float("inf"))
    world = sweep(tmp_path)
    assert world.statuses["base-seed0"][0] == "failed" and completed(world) == {FULL, LAYER, OTHER}


def test_scores_that_cannot_be_written_for_a_moment_are_written_again(tmp_path):
    fault = Fault("layer-00", ray.exceptions.RayTaskError("record_scores", "", OSError("503 Slow Down")), times=2)
    world = sweep(tmp_path, faults={"record_scores": fault})
    assert fault.calls == 3 and completed(world) == {"base-seed0", FULL, LAYER, OTHER}


# -- stopping -------------------------------------------------------------------------------------------------


def test_a_stop_sees_the_update_to_its_end_and_a_resume_goes_on_from_there(tmp_path):
    """The signal comes 3 s into the second update of a layer. Its step counts: the resumed sweep makes one more of
    three, without the two that are done."""

    async def stop(trainer, experience, step):
        if trainer.run == LAYER and step == 1:
            asyncio.get_running_loop().call_later(3, os.kill, os.getpid(), signal.SIGTERM)

    world = sweep(tmp_path, steps=3, faults={"update": stop}, checkpoint_every=5)
    assert world.statuses[LAYER] == ("running", "stopped after step 2; `layersweep resume` goes on from there")
    assert steps_of(world, LAYER) == [0, 1] and (LAYER, 2) in world.commits
    resumed = sweep(tmp_path, steps=3, checkpoint_every=5)
    assert steps_of(resumed, LAYER) == [2] and completed(resumed) == {"base-seed0", FULL, LAYER, OTHER}


def test_a_stop_while_only_the_base_is_left_writes_the_tables(tmp_path):
    """All runs are done after 200 s; the base's evaluation hangs until the signal at 250."""

    async def hang(worker, engine, run, *args):
        if run is None:
            asyncio.get_running_loop().call_later(250, os.kill, os.getpid(), signal.SIGTERM)
            await asyncio.sleep(FOREVER)

    world = sweep(tmp_path, faults={"evaluation": hang})
    assert completed(world) == {FULL, LAYER, OTHER} and world.calls["close"] == 1


# -- a base without a score -----------------------------------------------------------------------------------


async def unscored_base(worker, engine, run, *args):
    """Fails evaluations of the base in a way that no retry mends."""
    if run is None:
        raise ray.exceptions.RayTaskError("evaluate", "", ValueError("no reward"))


def test_trials_choose_no_learning_rate_without_a_score_of_the_base(tmp_path):
    """No run begins."""
    tuning = {"tune": [1e-5, 1e-6], "steps": 1}
    plan = study(str(tmp_path), 1, 2, layers=2, training={"learning_rate": tuning}, resources={"engines": 1})
    world = World(16, TIMES, FREE, folder=plan.folder, faults={"evaluation": unscored_base})
    simulate(plan, world, worked=lambda world: 0.0, limit=50_000)
    assert completed(world) == {"full@lr-1e-05-seed0", "full@lr-1e-06-seed0"}
    assert SweepManifest.load(plan.folder).rates is None


# -- learning-rate trials ---------------------------------------------------------------------------------------------


def test_the_rates_that_trials_found_are_recorded_and_their_weights_deleted(tmp_path, monkeypatch):
    """Two trials of one step, then the runs; the choice itself is tested without actors."""
    monkeypatch.setattr(learning_rate_trials, "learning_rates_of", lambda *_: LearningRates(layer=1e-6, full=1e-5))
    tuning = {"tune": [1e-5, 1e-6], "steps": 1}
    plan = study(str(tmp_path), 1, 2, layers=2, training={"learning_rate": tuning}, resources={"engines": 1})
    world = World(16, TIMES, FREE, folder=plan.folder)
    simulate(plan, world, worked=lambda world: 0.0, limit=50_000)
    trials = {"full@lr-1e-05-seed0", "full@lr-1e-06-seed0"}
    assert completed(world) == {"base-seed0", FULL, LAYER, OTHER} | trials
    assert SweepManifest.load(plan.folder).rates == {"layer": 1e-6, "full": 1e-5}
