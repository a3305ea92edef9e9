"""Typed clients of a sweep's actors: the only place that knows their methods' names and Ray's call options.

Data stays in Ray's object store: what an actor produces for another one (experience, weights, columns of scores) is
passed on as a reference, and comes with a second, empty answer that the driver can wait for without the data.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType

import pandas as pd
import ray

from layersweep.policies.selection import Selection, run_name
from layersweep.policies.variant import Variant
from layersweep.rollout.config import RolloutConfig
from layersweep.rollout.types import Pushed
from layersweep.workers.startup.model_source import ModelSource
from layersweep.workers.storage.run_store import CheckpointRecord
from layersweep.workers.training.setup import TrainingSetup

Reference = NewType("Reference", object)
"""ray.ObjectRef of something that does not pass through the driver."""


@dataclass(frozen=True)
class Produced:
    """A result that an actor is about to produce for another one."""

    done: Awaitable[list[str] | None]
    """Resolved once it is there, to what the user is to be told of it."""
    value: Reference


class Updated(NamedTuple):
    """The result of an update."""

    metrics: dict[str, float]
    """A row of steps.parquet, as far as the trainer knows it."""
    weights: Reference
    """Argument of EngineClient.push; good until the trainers' next call."""


@dataclass(frozen=True)
class TrainerInfo:
    """Facts about a run's trainers that have started."""

    trainable_parameters: int
    base_digest: str
    """Digest of the frozen weights."""
    hosts: str
    """Hosts and GPUs of all ranks."""


@dataclass(frozen=True)
class SavedFiles:
    """All ranks' parts of a checkpoint."""

    checksums: dict[str, str]
    """Checksums by file name."""
    cpu_seconds: float


class EngineClient:
    """An engine actor (layersweep.workers.actors.engine)."""

    def __init__(self, actor: Any):
        self.actor = actor

    async def start(
        self, model: ModelSource, architecture: str, config: RolloutConfig, dtype: str, seed: int, trains_all: bool
    ) -> tuple[str, str]:
        """Load the model and check the engine against a plain forward; its name, host and GPUs.

        Args:
            trains_all: whether runs of the whole model use it.
        """
        return await self.actor.start.remote(model, architecture, config, dtype, seed, trains_all)

    async def reset(self) -> tuple[str, str]:
        """Forget all runs; its name, host and GPUs."""
        return await self.actor.reset.remote()

    async def device(self) -> str:
        """Name its GPU, `cpu`, or `several`."""
        return await self.actor.device.remote()

    async def push(self, run: str, version: int, weights: Reference) -> Pushed:
        """Serve a run from these weights."""
        return await self.actor.push.options(name=f"Engine.push {run}").remote(run, version, weights)

    async def load(self, run: str, version: int, path: str) -> Pushed:
        """Serve a run from its overlay file."""
        return await self.actor.load.options(name=f"Engine.load {run}").remote(run, version, path)

    def drop(self, run: str) -> None:
        """Forget a run's weights. Nothing waits for it."""
        self.actor.drop.remote(run)

    async def sleep(self) -> None:
        """Free GPU memory for trainers."""
        await self.actor.sleep.remote()

    async def wake(self) -> None:
        """Take the GPU memory back."""
        await self.actor.wake.remote()

    async def stuck_for(self) -> float:
        """Ask for the seconds without a finished step although there is work."""
        return await self.actor.stuck_for.remote()

    def kill(self) -> None:
        """End the actor."""
        ray.kill(self.actor)


class RestartableClient:
    """An actor that Ray starts again when it dies, and whose calls Ray repeats."""

    def __init__(self, actor: Any):
        self.actor = actor

    async def alive(self) -> None:
        """Answer while the actor does."""
        await self.actor.alive.remote()

    def restart(self) -> None:
        """End the actor; Ray starts it again."""
        ray.kill(self.actor, no_restart=False)


class RolloutClient(RestartableClient):
    """The rollout worker (layersweep.workers.actors.rollout_worker)."""

    def rollout(self, engine: EngineClient, run: str | None, version: int, seed: int, step: int) -> Produced:
        """Generate the experience of a training step, for TrainerGroup.update.

        Args:
            run: None is the base.
            version: of the run's weights that the engine must have.
        """
        call = self.actor.rollout.options(num_returns=2, name=f"RolloutWorker.rollout {run or run_name('base', seed)}")
        return Produced(*call.remote(engine.actor, run, version, seed, step))

    def evaluate(
        self, engine: EngineClient, run: str | None, version: int, suite: str, split: str, seed: int, samples: int,
        greedy: bool, label: str,
    ) -> Produced:  # fmt: skip
        """Evaluate one suite: columns of scores.parquet, for CollectorClient.record_scores.

        Args:
            run: None is the base.
            label: the run's name in Ray's dashboard.
        """
        call = self.actor.evaluation.options(num_returns=2, name=f"RolloutWorker.evaluation {label}")
        return Produced(*call.remote(engine.actor, run, version, suite, split, seed, samples, greedy))


@dataclass(frozen=True)
class MadeVariant:
    """Weights that are being made: a variant's, or those of a short training."""

    facts: Awaitable[dict[str, float]]
    """Facts about the change of the base; resolved once the weights are there."""
    weights: Reference
    """Argument of EngineClient.push."""


class VariantClient:
    """The maker of variants (layersweep.workers.actors.variant_maker)."""

    def __init__(self, actor: Any):
        self.actor = actor

    def make(self, variant: Variant, seed: int) -> MadeVariant:
        """Make a variant's weights from the runs of a seed."""
        call = self.actor.make.options(num_returns=2, name=f"VariantMaker.make {run_name(variant.name, seed)}")
        return MadeVariant(*call.remote(variant, seed))

    async def write_overlay(self, variant: Variant, seed: int, folder: str) -> dict[str, float]:
        """Have a variant's weights written as an overlay; facts about its change of the base."""
        return await self.actor.write_overlay.remote(variant, seed, folder)


class ProberClient:
    """The prober (layersweep.workers.actors.prober)."""

    def __init__(self, actor: Any):
        self.actor = actor

    async def probe(self, experience: Reference, further: Sequence[Selection] = ()) -> list[dict[str, Any]]:
        """Ask for rows of probe.parquet from a batch of the base's responses, with some selections beside layers."""
        return await self.actor.probe.remote(experience, further)

    def train(self, experience: Reference, selection: Selection, setup: TrainingSetup) -> MadeVariant:
        """Train a selection for a short while on a batch of the base's responses."""
        call = self.actor.train.options(num_returns=2, name=f"Prober.train {selection.name}")
        return MadeVariant(*call.remote(experience, selection, setup))


class CollectorClient(RestartableClient):
    """The collector (layersweep.workers.actors.collector)."""

    def record_step(self, selection: str, seed: int, step: int, row: dict[str, Any]) -> None:
        """Send a row of steps.parquet. Nothing waits for it: the run's next checkpoint brings its rows once more, since
        the collector may be restarted in between."""
        self.actor.record_step.remote(selection, seed, step, row)

    async def record_scores(self, selection: str, seed: int, step: int, columns: Reference) -> None:
        """Send the scores of one suite; in the run store once this returns."""
        await self.actor.record_scores.remote(selection, seed, step, columns)

    async def commit(
        self, selection: str, seed: int, step: int, checksums: dict[str, str], rows: list[dict[str, Any]],
        seconds: float, keep: int,
    ) -> float:  # fmt: skip
        """Make a checkpoint count, whose files are written; the CPU seconds that it took.

        Args:
            rows: of the steps since the last checkpoint at least.
            seconds: that the run has taken until then.
            keep: number of the run's checkpoints that stay.
        """
        return await self.actor.commit.remote(selection, seed, step, checksums, rows, seconds, keep)

    async def add_run(self, metadata: dict[str, Any]) -> None:
        """Add a run that was not known at the start."""
        await self.actor.add_run.remote(metadata)

    async def update_run(self, selection: str, seed: int, **changes: Any) -> None:
        """Send status, reason, or what became known of a run; in the run store once this returns."""
        await self.actor.update_run.remote(selection, seed, **changes)

    def set_location(self, name: str, hosts: str | None) -> None:
        """Send the hosts of an engine or of a run's trainers; None once they are gone. Nothing waits for it."""
        self.actor.set_location.remote(name, hosts)

    async def all_scores(self) -> pd.DataFrame:
        """Ask for the content of scores.parquet as of now."""
        return await self.actor.all_scores.remote()

    async def table(self) -> pd.DataFrame:
        """Ask for the contribution table as of now."""
        return await self.actor.table.remote()

    async def close(self) -> None:
        """Write the tables for the last time."""
        await self.actor.close.remote()


class TrainerGroup:
    """The trainers of one run (layersweep.workers.actors.trainer): an actor per data-parallel rank, rank 0 first.

    Args:
        trainers: the actors, created.
        nodes: Ray's id of each rank's node, where its CPUs compute; empty on GPUs.
        resources: what the group holds, the actors among it; released by `stop`.
        base_weights: reference to what Trunk.attach needs; None where each rank loads the base itself.
    """

    def __init__(
        self,
        trainers: Sequence[Any],
        nodes: Sequence[str],
        resources: contextlib.AsyncExitStack,
        base_weights: Reference | None = None,
    ):
        self.trainers, self.nodes, self.resources = list(trainers), list(nodes), resources
        self.base_weights = base_weights
        self.step: int | None = 0
        """Steps done, also the version of the weights; None while an update is under way, and after one that failed."""

    async def start(
        self, model: ModelSource, setup: TrainingSetup, engine_device: str, weight_transfer: str
    ) -> TrainerInfo:
        """Join the ranks to a process group, load the base and build the DeepSpeed engines."""
        address = await self.trainers[0].address.remote()
        started = await asyncio.gather(
            *(
                trainer.start.remote(model, address, setup, engine_device, weight_transfer, self.base_weights)
                for trainer in self.trainers
            )
        )
        hosts = " + ".join(dict.fromkeys(rank["where"] for rank in started))
        return TrainerInfo(started[0]["trainable_parameters"], started[0]["trunk"], hosts)

    async def update(self, experience: Reference, step: int) -> Updated:
        """Train on one step's experience."""
        self.step = None
        answers = [trainer.update.options(num_returns=2).remote(experience, step) for trainer in self.trainers]
        metrics = await asyncio.gather(*(metrics for metrics, _ in answers))
        self.step = step + 1
        return Updated(metrics[0], answers[0][1])

    def weights(self) -> Reference:
        """Ask for the trained weights, for EngineClient.push; all ranks, since at ZeRO 3 they gather them together."""
        return [trainer.weights.remote() for trainer in self.trainers][0]

    async def in_sync(self, timeout: float) -> bool:
        """Tell whether all ranks answer within so many seconds and have done the same steps."""
        if self.step is None:
            return False
        try:
            async with asyncio.timeout(timeout):
                steps = await asyncio.gather(*(trainer.completed.remote() for trainer in self.trainers))
            return set(steps) == {self.step}
        except (ray.exceptions.RayError, TimeoutError):
            return False

    async def checkpoint_problems(self, folder: str, record: CheckpointRecord) -> list[str]:
        """List what is wrong with the ranks' parts of a checkpoint; empty where it can be restored."""
        found = await asyncio.gather(*(trainer.problem.remote(folder, record) for trainer in self.trainers))
        return [problem for problem in found if problem]

    async def restore(self, folder: str, record: CheckpointRecord) -> None:
        """Go on from a checkpoint."""
        self.step = None
        await asyncio.gather(*(trainer.restore.remote(folder, record) for trainer in self.trainers))
        self.step = record.step

    async def save(self, folder: str, step: int) -> SavedFiles:
        """Write every rank's part of a checkpoint."""
        parts = await asyncio.gather(*(trainer.save.remote(folder, step) for trainer in self.trainers))
        return SavedFiles({name: checksum for name, checksum, _ in parts}, sum(cpu for _, _, cpu in parts))

    async def write_overlay(self, folder: str) -> None:
        """Write the trained weights to <folder>/model.safetensors."""
        await asyncio.gather(*(trainer.finish.remote(folder) for trainer in self.trainers))

    async def stop(self) -> None:
        """End the actors and release what they held."""
        await self.resources.aclose()
