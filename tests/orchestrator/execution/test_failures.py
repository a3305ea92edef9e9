"""Failures: what is retried, how long is waited, and what a person reads."""

import asyncio
import traceback
from collections.abc import Coroutine

import pytest
import ray
from pydantic import BaseModel, ValidationError
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError, UnserializableException

from layersweep.orchestrator.execution.failures import (
    AdaptiveTimeouts,
    CallTimeout,
    RewardCollapse,
    StoreUnavailable,
    first_error,
    reach_files,
    reach_store,
    reason_of,
    retryable,
)
from layersweep.orchestrator.execution.ray_session import start_ray
from layersweep.rollout.types import EngineStopped, StaleWeights, TransferFailed
from tests.simulations.virtual_time import VirtualLoop


def simulated(scene: Coroutine):
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner:
        return runner.run(scene)


# -- timeouts -------------------------------------------------------------------------------------------------


def waits(calls: list[tuple[str, float]]) -> list[float | str]:
    """How long each call of (kind, seconds) was waited for, in turn, or the message of its timeout; minimum 30 s."""

    async def scene() -> list[float | str]:
        timeouts, clock, seen = AdaptiveTimeouts(30.0), asyncio.get_running_loop().time, []
        for kind, seconds in calls:
            began = clock()
            try:
                assert await timeouts.wait(kind, asyncio.sleep(seconds, "answer")) == "answer"
                seen.append(clock() - began)
            except CallTimeout as error:
                assert error.kind == kind and clock() - began == pytest.approx(float(str(error).split()[-2]))
                seen.append(str(error))
        return seen

    return simulated(scene())


def test_a_first_call_has_ten_times_the_minimum():
    assert waits([("push", 299), ("update", 301)]) == [299, "update unanswered after 300 s"]


def test_later_calls_have_ten_times_the_longest_of_their_kind_and_the_minimum_at_least():
    """After 8 s 80 s are waited, after 20 s 200 s; after 1 s alone it is the minimum; other kinds are not touched."""
    assert waits([("push", 8), ("push", 79), ("push", 791)]) == [8, 79, "push unanswered after 790 s"]
    assert waits([("push", 20), ("push", 1), ("push", 201)]) == [20, 1, "push unanswered after 200 s"]
    assert waits([("push", 1), ("push", 31)]) == [1, "push unanswered after 30 s"]
    assert waits([("push", 1), ("load", 299)]) == [1, 299]


def test_a_cancellation_that_comes_with_the_answer_is_not_lost():
    """asyncio.wait_for in Python 3.11 returns the answer then, and a run that is told to stop trains on."""

    async def scene() -> bool:
        answer = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(AdaptiveTimeouts(30.0).wait("push", answer))
        await asyncio.sleep(1)
        answer.set_result("answer")
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert simulated(scene())


def test_a_timeout_of_the_call_itself_is_its_own_error():
    async def call() -> None:
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket"):
        simulated(AdaptiveTimeouts(30.0).wait("push", call()))


# -- retries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CallTimeout("push", 3), True),
        (ActorDiedError(), True),
        (ActorUnavailableError("gone", None), True),
        (ObjectLostError("", None, ""), True),
        (RayTaskError("rollout", "", ActorDiedError()), True),
        (RayTaskError("rollout", "", RayTaskError("generate", "", EngineStopped("vLLM failed"))), True),
        (RayTaskError("rollout", "", StaleWeights("version 2 asked for, 1 is here")), True),
        (RayTaskError("push", "", TransferFailed("layer-01-seed0: connection closed by peer")), True),
        (RayTaskError("update", "", ValueError("loss is nan")), False),
        (RayTaskError("save", "", OSError("503")), False),
        (ActorDiedError(RayTaskError("__init__", "ValueError: row 3", ValueError("row 3"))), False),
        (RayTaskError("rollout", "", ActorDiedError(RayTaskError("__init__", "", ValueError("row 3")))), False),
        (RewardCollapse("no reward"), False),
    ],
)
def test_what_another_actor_may_mend(error, expected):
    """An actor whose constructor raised raises again."""
    assert retryable(error) is expected


@pytest.mark.parametrize("failing", range(5))
def test_files_are_reached_within_three_more_attempts(failing):
    """After 1, 4 and 15 seconds more: 0, 1, 5, 20; the fourth failure is the last."""

    async def scene() -> tuple[list[float], str]:
        clock, attempts = asyncio.get_running_loop().time, []

        async def call() -> str:
            attempts.append(clock())
            if len(attempts) <= failing:
                raise OSError("503 Slow Down")
            return "content"

        try:
            return attempts, await reach_store("the run's scores", call)
        except StoreUnavailable as error:
            return attempts, str(error)

    attempts, result = simulated(scene())
    assert attempts == [0, 1, 5, 20][: failing + 1]
    assert result == "content" if failing < 4 else (
        "the run's scores could not be reached: OSError: 503 Slow Down; `layersweep resume` goes on from the last "
        "checkpoint"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "raised", "attempts"),
    [
        (PermissionError("no"), StoreUnavailable, 1),
        (FileNotFoundError("no"), StoreUnavailable, 1),
        (RayTaskError("commit", "", OSError("503")), StoreUnavailable, 4),
        (RayTaskError("commit", "", ValueError("no record of step 1")), RayTaskError, 1),
        (ActorDiedError(), ActorDiedError, 1),
        (ValueError("no"), ValueError, 1),
    ],
)
def test_only_files_that_may_answer_later_are_tried_again(error, raised, attempts):
    calls = []

    def call(what: str) -> None:
        calls.append(what)
        raise error

    with pytest.raises(raised):
        simulated(reach_files("the run's scores", call, "x"))
    assert calls == ["x"] * attempts


# -- reasons --------------------------------------------------------------------------------------------------


class TwoArguments(RuntimeError):
    """Pickles, and cannot be unpickled: a class with a constructor of its own."""

    def __init__(self, file: str, row: int):
        super().__init__(f"{file}, row {row}: no answer")


class Unpicklable(RuntimeError):
    """Holds what no other process can have."""

    def __init__(self, text: str):
        super().__init__(text)
        self.generator = (i for i in ())


class Row(BaseModel):
    answer: int


def traceback_of(error: Exception) -> str:
    try:
        raise error
    except Exception:
        return traceback.format_exc()


def invalid() -> ValidationError:
    try:
        Row(answer="eleven")
    except ValidationError as error:
        return error


def test_a_constructors_error_is_named_without_its_traceback():
    error = ValueError("train.jsonl, row 3, field 'answer': a list")
    died = ActorDiedError(RayTaskError("RolloutWorker.__init__", traceback_of(error), error))
    assert reason_of(died) == "ValueError: train.jsonl, row 3, field 'answer': a list"
    assert reason_of(RayTaskError("rollout", "", died)) == "ValueError: train.jsonl, row 3, field 'answer': a list"


def test_the_end_of_an_actor_is_told_without_what_is_common():
    """Ray's own message of 1,200 characters, for each run that waited for the actor."""
    detail = (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the "
        "process was killed by the OOM killer due to high memory usage, (2) ray stop --force was called."
    )
    context = ActorDiedErrorContext(
        error_message=detail, actor_id=bytes(16), class_name="Engine", name="Engine-0", pid=12261,
        node_ip_address="192.0.2.2", ray_namespace="layersweep-demo",
    )  # fmt: skip
    expected = (
        "ActorDiedError: Engine-0 (pid 12261 on 192.0.2.2): its worker process has died. Worker exit type: "
        "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
    )
    assert reason_of(ActorDiedError(context)) == expected


def test_errors_that_do_not_travel_are_named_all_the_same():
    error = Unpicklable("train.jsonl, row 3: no answer")
    assert reason_of(RayTaskError("f", traceback_of(error), error)) == "Unpicklable: train.jsonl, row 3: no answer"
    error = TwoArguments("train.jsonl", 3)
    formatted = "\n".join(traceback.format_exception(RayTaskError("f", traceback_of(error), error)))
    assert "TwoArguments: train.jsonl, row 3: no answer" in reason_of(UnserializableException(formatted))


def test_a_message_of_several_lines_is_one_line():
    """The validator's own three lines."""
    error = invalid()
    died = ActorDiedError(RayTaskError("RolloutWorker.__init__", traceback_of(error), error))
    assert reason_of(died).startswith(
        "ValidationError: 1 validation error for Row answer Input should be a valid integer, unable to parse string"
    )


def test_a_long_reason_keeps_its_head_and_its_tail():
    reason = reason_of(ValueError("a" * 2000 + " row 7"))
    assert reason.startswith("ValueError: aaa") and reason.endswith("aaa row 7") and len(reason) == 700 + 5 + 300


def test_the_first_error_of_nested_groups():
    inner, other = ValueError("inner"), ValueError("other")
    assert first_error(ExceptionGroup("", [ExceptionGroup("", [inner]), other])) is inner
    assert reason_of(ExceptionGroup("", [inner])) == "ValueError: inner"


@pytest.mark.slow
def test_errors_as_ray_delivers_them():
    class Broken:
        def __init__(self, error: str | None = None):
            if error:
                raise ValueError(error)

        def raises(self, kind: str) -> None:
            if kind == "two arguments":
                raise TwoArguments("train.jsonl", 3)
            if kind == "unpicklable":
                raise Unpicklable("train.jsonl, row 3: no answer")
            Row(answer="eleven")

    async def reason(call) -> tuple[str, bool]:
        try:
            await call
        except ray.exceptions.RayError as error:
            return reason_of(error), retryable(error)

    async def scene() -> None:
        remote = ray.remote(Broken).options(num_cpus=0.1, max_restarts=-1, max_task_retries=-1)
        broken = remote.remote("train.jsonl, row 3: no answer")
        assert await reason(broken.raises.remote("")) == ("ValueError: train.jsonl, row 3: no answer", False)
        actor = remote.remote()
        for kind, name in (("two arguments", "TwoArguments"), ("unpicklable", "Unpicklable")):
            assert await reason(actor.raises.remote(kind)) == (f"{name}: train.jsonl, row 3: no answer", False)
        said, again = await reason(actor.raises.remote("pydantic"))
        assert (
            said.startswith("ValidationError: 1 validation error for Row answer Input should be a valid") and not again
        )

    start_ray("local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        asyncio.run(asyncio.wait_for(scene(), 120))
    finally:
        ray.shutdown()
