"""The clients of the actors, where they do more than pass a call on."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
import ray

from layersweep.orchestrator.execution.clients import TrainerGroup
from tests.simulations.virtual_time import VirtualLoop


def actor(**answers) -> SimpleNamespace:
    """An actor handle whose methods give these answers, raise them, or never answer (...)."""

    def method(answer):
        async def remote(*args):
            if answer is ...:
                await asyncio.sleep(1e9)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(remote=remote)

    return SimpleNamespace(**{name: method(answer) for name, answer in answers.items()})


def in_sync(step: int | None, *completed) -> tuple[bool, float]:
    """Whether ranks that have completed these steps are in sync at `step`, and how long that took to find out."""

    async def scene() -> tuple[bool, float]:
        group = TrainerGroup([actor(completed=answer) for answer in completed], [], contextlib.AsyncExitStack())
        group.step = step
        return await group.in_sync(40.0), asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner:
        return runner.run(scene())


@pytest.mark.parametrize(
    ("step", "completed", "expected"),
    [
        (3, (3, 3), (True, 0)),
        (3, (3, 4), (False, 0)),  # one rank made the update, the other did not
        (3, (4, 4), (False, 0)),  # both did, though the driver never heard of it
        (None, (3, 3), (False, 0)),  # an update is under way, or failed
        (3, (3, ray.exceptions.ActorDiedError()), (False, 0)),
        (3, (3, ...), (False, 40)),
    ],
)
def test_ranks_are_in_sync_where_all_answer_and_stand_at_the_same_step(step, completed, expected):
    assert in_sync(step, *completed) == expected


def test_a_stopped_group_releases_what_it_held_once():
    released = []

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as held:
            held.callback(released.append, "placement group")
            held.callback(released.append, "actor")
            group = TrainerGroup([], [], held.pop_all())
        assert released == []
        await group.stop()
        await group.stop()

    asyncio.run(scene())
    assert released == ["actor", "placement group"]
