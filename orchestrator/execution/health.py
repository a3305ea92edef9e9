"""Notices who has fallen silent: by asking, and by whether work gets done."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import ray

from .engine_slot import EngineSlot
from .failures import RayLost, reason_of

LOOKS = 4
"""How often to look within the time of patience."""
HOME = 10.0
"""Seconds between looks at the driver's own node, at most."""


class HealthMonitor:
    """Replaces engines, and has Ray restart the collector and the rollout worker, when they do not answer.

    Args:
        places: of the engines.
        standing: names and actors that Ray restarts; each answers `alive`.
        patience: seconds of silence, or of work without a finished step.
        say: tells the user.
    """

    def __init__(
        self, places: Sequence[EngineSlot], standing: dict[str, Any], patience: float, say: Callable[[str], None]
    ):
        self.places, self.standing, self.patience, self.say = places, standing, patience, say

    async def forever(self) -> None:
        """Until cancelled.

        Raises:
            RayLost: Ray has ended on this node.
        """
        await asyncio.gather(
            self._ray(),
            *(self._engine(place) for place in self.places),
            *(self._actor(name, actor) for name, actor in self.standing.items()),
        )

    async def _ray(self) -> None:
        here = ray.get_runtime_context().get_node_id()
        while True:
            await asyncio.sleep(min(HOME, self.patience / LOOKS))
            try:
                nodes = await asyncio.wait_for(asyncio.to_thread(ray.nodes), self.patience)
            except TimeoutError as error:
                raise RayLost(f"Ray's head does not answer for {self.patience:.0f} s") from error
            if not any(node["NodeID"] == here and node["Alive"] for node in nodes):
                raise RayLost("Ray has ended on the driver's node")

    async def _engine(self, place: EngineSlot) -> None:
        while True:
            await asyncio.sleep(self.patience / LOOKS)
            if place.changing.locked():
                continue
            seen = place.generation
            try:
                stuck = await asyncio.wait_for(place.actor.stuck_for.remote(), self.patience)
                if stuck < self.patience:
                    continue
                trouble = f"has work and finished no step of it for {stuck:.0f} s"
            except TimeoutError:
                trouble = f"does not answer for {self.patience:.0f} s"
            except ray.exceptions.RayError as error:
                trouble = reason_of(error)
            self.say(f"{place.name} {trouble}: starting another")
            try:
                await place.renew(seen)
            except ray.exceptions.RayError as error:  # the runs that need it try again, and count how often
                self.say(f"{place.name} did not start: {reason_of(error)}")

    async def _actor(self, name: str, actor: Any) -> None:
        while True:
            await asyncio.sleep(self.patience / LOOKS)
            try:
                await asyncio.wait_for(actor.alive.remote(), self.patience)
            except TimeoutError:
                self.say(f"{name} does not answer for {self.patience:.0f} s: starting it again")
                ray.kill(actor, no_restart=False)
            except ray.exceptions.RayError:
                continue  # dead, and Ray is about to restart it
