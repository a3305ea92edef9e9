"""Health checks: engines and support actors must answer, and engines must get work done."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import ray

from .clients import RestartableClient
from .engine_slot import EngineSlot
from .failures import RayLost, first_error, reason_of

CHECKS_PER_TIMEOUT = 4
"""Health checks of an actor within its timeout."""
NODE_CHECK_SECONDS = 10.0
"""Seconds between checks of the driver's own node, at most."""


class HealthMonitor:
    """Replaces engines, and has Ray restart collector and rollout worker, when they do not answer.

    Args:
        engine_slots: all engines.
        restartable: the actors that Ray restarts, by what they are called in messages.
        timeout: seconds without an answer, or of work without a finished step, after which an actor is replaced.
        say: tells the user.
    """

    def __init__(
        self,
        engine_slots: Sequence[EngineSlot],
        restartable: Mapping[str, RestartableClient],
        timeout: float,
        say: Callable[[str], None],
    ):
        self.engine_slots, self.restartable, self.timeout, self.say = engine_slots, restartable, timeout, say

    async def run(self) -> None:
        """Check until cancelled.

        Raises:
            RayLost: Ray has ended on this node.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._check_node())
                for slot in self.engine_slots:
                    tasks.create_task(self._check_engine(slot))
                for name, actor in self.restartable.items():
                    tasks.create_task(self._check_actor(name, actor))
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    async def _check_node(self) -> None:
        own_node = ray.get_runtime_context().get_node_id()
        while True:
            await asyncio.sleep(min(NODE_CHECK_SECONDS, self.timeout / CHECKS_PER_TIMEOUT))
            try:
                async with asyncio.timeout(self.timeout):
                    nodes = await asyncio.to_thread(ray.nodes)
            except TimeoutError as error:
                raise RayLost(f"Ray's head does not answer for {self.timeout:.0f} s") from error
            if not any(node["NodeID"] == own_node and node["Alive"] for node in nodes):
                raise RayLost("Ray has ended on the driver's node")

    async def _check_engine(self, slot: EngineSlot) -> None:
        while True:
            await asyncio.sleep(self.timeout / CHECKS_PER_TIMEOUT)
            if slot.changing.locked():
                continue
            generation = slot.generation
            try:
                async with asyncio.timeout(self.timeout):
                    stuck = await slot.engine.stuck_for()
                if stuck < self.timeout:
                    continue
                problem = f"has work and finished no step of it for {stuck:.0f} s"
            except TimeoutError:
                problem = f"does not answer for {self.timeout:.0f} s"
            except ray.exceptions.RayError as error:
                problem = reason_of(error)
            self.say(f"{slot.name} {problem}: starting another")
            try:
                await slot.replace(generation)
            except ray.exceptions.RayError as error:  # the runs that need it try again, and count how often
                self.say(f"{slot.name} did not start: {reason_of(error)}")

    async def _check_actor(self, name: str, actor: RestartableClient) -> None:
        while True:
            await asyncio.sleep(self.timeout / CHECKS_PER_TIMEOUT)
            try:
                async with asyncio.timeout(self.timeout):
                    await actor.alive()
            except TimeoutError:
                self.say(f"{name} does not answer for {self.timeout:.0f} s: starting it again")
                actor.restart()
            except ray.exceptions.RayError:
                continue  # dead, and Ray is about to restart it
