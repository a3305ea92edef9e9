"""The engines of a sweep: the engine of each run, and sleep."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import ray

from layersweep.orchestrator.planning.engine_facts import trains_outside_layers
from layersweep.orchestrator.planning.plan import Plan
from layersweep.workers.startup.model_source import ModelSource

from .clients import CollectorClient, EngineClient
from .engine_slot import EngineSlot
from .sleep_phases import NoSleepPhases, Phase, SleepPhases


class EnginePool:
    """All engine slots.

    Args:
        plan: what will be run.
        engines: the first actor of each slot: created and not started, or left by another sweep.
        create: creates a replacement by its slot's number and its name.
        model: the base.
        collector: gets the engines' locations.
    """

    def __init__(
        self,
        plan: Plan,
        engines: Sequence[EngineClient],
        create: Callable[[int, str], EngineClient],
        model: ModelSource,
        collector: CollectorClient,
    ):
        self.plan, self.spec, self.model, self.collector = plan, plan.spec, model, collector
        self.slots = [
            EngineSlot(f"Engine-{number}", engine, partial(create, number), self.start_engine)
            for number, engine in enumerate(engines)
        ]
        self.assigned: dict[str, EngineSlot] = {}
        """Engine slots by run."""
        self.phases = SleepPhases(self.begin_phase) if self.spec.rollout.sleep else NoSleepPhases()
        """Coordinates generation and training phases when engines sleep."""

    async def start(self) -> None:
        """Start all engines at the same time."""
        await asyncio.gather(*(slot.start() for slot in self.slots))

    async def take_over(self) -> None:
        """Have engines that another sweep left forget its runs, in place of `start`."""
        for name, hosts in await asyncio.gather(*(slot.engine.reset() for slot in self.slots)):
            self.collector.set_location(name, hosts)

    def slot_of(self, run: str) -> EngineSlot:
        """Look up the engine slot of a run by its name: assigned in turn, and kept."""
        return self.assigned.setdefault(run, self.slots[len(self.assigned) % len(self.slots)])

    async def start_engine(self, engine: EngineClient) -> None:
        """Have an engine load the model and check itself."""
        async with self.phases.hold("generation"):  # it starts awake
            name, hosts = await engine.start(
                self.model, self.plan.architecture.name, self.spec.rollout, engine_dtype(self.plan), 0,
                trains_outside_layers(self.plan),
            )  # fmt: skip
        self.collector.set_location(name, hosts)

    async def begin_phase(self, phase: Phase) -> None:
        """Put engines to sleep for training, wake them for generation. An engine that fails at it is ended, so that it
        holds no memory: the run that needs it next has it replaced."""

        async def change(engine: EngineClient) -> None:
            try:
                async with asyncio.timeout(self.spec.recovery.patience):
                    await (engine.wake() if phase == "generation" else engine.sleep())
            except (ray.exceptions.RayError, TimeoutError):
                engine.kill()

        await asyncio.gather(*(change(slot.engine) for slot in self.slots))


def engine_dtype(plan: Plan) -> str:
    """Name the dtype in which engines compute: `rollout.dtype`, by default the trainers'."""
    return plan.spec.training.dtype if plan.spec.rollout.dtype == "auto" else plan.spec.rollout.dtype
