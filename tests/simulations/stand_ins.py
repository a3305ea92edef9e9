"""Stand-ins for Ray and for the actors of a sweep: each call answers after as long as the real actor would take.

Everything else of a sweep is real: driver, run controllers, placement, health checks, timeouts, progress.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray

from layersweep.orchestrator.execution.shared_gpus import SharedGpuPool
from layersweep.policies.selection import Selection
from layersweep.policies.variant import Variant
from layersweep.rollout.types import StaleWeights
from layersweep.workers.actors.collector import WRITE_COST_FACTOR
from layersweep.workers.actors.gpu_share import trainers_per_gpu
from layersweep.workers.config import ActorResources
from layersweep.workers.storage.run_store import CheckpointRecord, RunStore
from tests.simulations.virtual_time import Server


@dataclass(frozen=True)
class Durations:
    """Seconds that the work of a run takes where no other run wants the same GPU."""

    rollout: float
    evaluation: float
    """Of all suites."""
    update: Callable[[Selection], float]
    push: float
    checkpoint: float
    start: float
    """Of a trainer."""


@dataclass(frozen=True)
class CollectorCost:
    """CPU seconds of the collector."""

    step: float
    """A row of steps.parquet."""
    commit_row: float
    """A checkpoint, by row in it."""
    scores: float
    """An evaluation of `responses`."""
    responses: int
    write_row: float
    """All three tables, by row of steps.parquet and by response in scores.parquet."""
    write_response: float


class Ref:
    """An answer to come; like Ray's it may be awaited often, and a cancelled wait does not end the work."""

    def __init__(self, task: asyncio.Task):
        self.task = task

    def __await__(self):
        return asyncio.shield(self.task).__await__()


class Method:
    """Of an actor, as Ray's handles have them."""

    def __init__(self, actor: "Actor", name: str, returns: int = 1):
        self.actor, self.name, self.returns = actor, name, returns

    def options(self, num_returns: int = 1, name: str = "") -> "Method":
        return Method(self.actor, self.name, num_returns)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        self.actor.world.calls[self.name] += 1
        ref = Ref(asyncio.ensure_future(self.actor.answer(self.name, args, kwargs)))
        return ref if self.returns == 1 else [ref] * self.returns


class Actor:
    """Answers every method at once; subclasses give those that take time."""

    dead = False
    """Killed for good: every call fails."""

    def __init__(self, world: "World"):
        self.world = world

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    async def answer(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.dead:
            raise ray.exceptions.ActorDiedError()
        args = [await arg if isinstance(arg, Ref) else arg for arg in args]
        if fault := self.world.faults.get(name):
            await fault(self, *args)
        handler = getattr(type(self), f"do_{name}", None)
        return await handler(self, *args, **kwargs) if handler else None


class Engine(Actor):
    """Generates one batch at a time: at the batch sizes of the study one fills the GPU."""

    def __init__(self, world: "World", number: int):
        super().__init__(world)
        self.gpu = Server()
        self.versions: dict[str, int] = {}
        """Of the weights of each run."""
        world.engines.append(self.gpu)

    async def do_start(self, *args: Any) -> tuple[str, str]:
        return "Engine", ""

    async def do_load(self, run: str, version: int, path: str) -> Any:
        return await self.do_push(run, version, path)

    async def do_drop(self, run: str) -> None:
        self.versions.pop(run, None)

    async def generate(self, run: str | None, version: int, seconds: float) -> None:
        """What the rollout worker calls."""
        if self.dead:
            raise ray.exceptions.ActorDiedError()
        if run and self.versions.get(run) != version:
            raise StaleWeights(f"{run}: version {version} asked for, {self.versions.get(run)} is here")
        await self.gpu.serve(seconds)
        if run and self.versions.get(run) != version:
            raise StaleWeights(f"{run}: its weights were replaced meanwhile")

    async def do_stuck_for(self) -> float:
        return 0.0

    async def do_push(self, run: str, version: int, weights: Any) -> Any:
        await asyncio.sleep(self.world.durations.push)
        self.versions[run] = version
        return SimpleNamespace(bytes=0, cpu_seconds=0.0)


class RolloutWorker(Actor):
    """Takes no time of its own."""

    async def do_rollout(self, engine: Engine, run: str | None, version: int, *args: Any) -> None:
        await engine.generate(run, version, self.world.durations.rollout)

    async def do_evaluation(self, engine: Engine, run: str | None, version: int, *args: Any) -> None:
        await engine.generate(run, version, self.world.durations.evaluation)


class VariantMaker(Actor):
    """Writes weights of no length."""

    async def do_write_overlay(self, variant: Variant, seed: int, folder: str) -> dict[str, float]:
        return {"change_norm": 2.0}


class Trainer(Actor):
    """On a GPU that it may share with others; they take turns."""

    def __init__(self, world: "World", gpu: Server | None, selection: Selection, seed: int, ranks: int):
        super().__init__(world)
        self.selection, self.ranks, self.steps = selection, ranks, 0
        self.run, self.stopped = f"{selection.name}-seed{seed}", False
        world.trainers[self.run] += 1
        world.most_runs = max(world.most_runs, len(+world.trainers))
        self.gpu = gpu or Server()
        if gpu is None:
            world.whole.append(self.gpu)

    async def do_address(self) -> tuple[str, int]:
        return "", 0

    async def do_start(self, *args: Any) -> dict[str, Any]:
        await asyncio.sleep(self.world.durations.start)
        return {"trainable_parameters": 0, "trunk": "", "where": ""}

    async def do_update(self, experience: Any, step: int) -> dict[str, float]:
        assert step == self.steps
        await self.gpu.serve(self.world.durations.update(self.selection) / self.ranks)
        self.steps = step + 1
        names = ("reward_mean", "tokens", "rollout_seconds", "reward_seconds", "update_seconds", "learning_rate")
        return dict.fromkeys(names, 1.0) | {
            "update_norm": float(self.steps), "grad_norm": 1.0, "no_signal_fraction": 0.0, "logprob_mismatch": 0.0,
        }  # fmt: skip

    async def do_completed(self) -> int:
        return self.steps

    async def do_restore(self, folder: str, record: CheckpointRecord) -> None:
        self.steps = record.step

    async def do_save(self, folder: str, step: int) -> tuple[str, str, float]:
        assert step == self.steps
        await self.gpu.serve(self.world.durations.checkpoint)
        return "rank-0.safetensors", "", 0.0


class Collector(Actor):
    """Its bookkeeping and the costs of the real one, whose thread does one call at a time.

    Ray sends an actor of one thread the calls of one caller in their order: a call whose arguments are still being
    computed holds up all that come after it.
    """

    def __init__(self, world: "World"):
        super().__init__(world)
        self.thread, self.sent = Server(), asyncio.Event()
        self.sent.set()
        self.rows = self.responses = 0
        self.next_write = self.written = self.stalest = self.longest_wait = 0.0
        world.collector = self

    async def answer(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        now = asyncio.get_running_loop().time
        asked, before, self.sent = now(), self.sent, asyncio.Event()
        mine = self.sent
        await before.wait()
        args = [await arg if isinstance(arg, Ref) else arg for arg in args]
        mine.set()
        answer = await super().answer(name, tuple(args), kwargs)
        self.longest_wait = max(self.longest_wait, now() - asked)
        return answer

    async def do_alive(self) -> None:
        await self.thread.serve(0.0)

    async def do_record_step(self, selection: str, seed: int, step: int, row: dict[str, Any]) -> None:
        self.rows += 1
        self.world.recorded.append((f"{selection}-seed{seed}", step))
        await self._serve(self.world.cost.step)

    async def do_commit(
        self, selection: str, seed: int, step: int, files: dict[str, str], rows: list[dict[str, Any]], *args: Any
    ) -> float:
        await self.thread.serve(step * self.world.cost.commit_row)
        self.world.commits.append((f"{selection}-seed{seed}", step))
        if self.world.folder:
            record = CheckpointRecord(step, files, rows, 0.0)
            RunStore(self.world.folder, f"{selection}-seed{seed}").commit(record, keep=2)
        return 0.0

    async def do_record_scores(self, selection: str, seed: int, step: int, columns: None) -> None:
        self.responses += self.world.cost.responses
        await self._serve(self.world.cost.scores)

    async def do_update_run(self, selection: str, seed: int, **changes: Any) -> None:
        self.world.statuses[f"{selection}-seed{seed}"] = (changes["status"], changes.get("reason"))
        if changes.get("status") != "running":
            self.world.ends[changes.get("reason") or changes["status"]] += 1
        await self._serve(0.0)

    async def _serve(self, seconds: float) -> None:
        """The call, and the tables where they are due."""
        now = asyncio.get_running_loop().time()
        if now > self.next_write:
            cost = self.world.cost
            cost_of_write = self.rows * cost.write_row + self.responses * cost.write_response
            seconds += cost_of_write
            self.next_write = now + cost_of_write + max(5.0, WRITE_COST_FACTOR * cost_of_write)
            self.stalest = max(self.stalest, now + cost_of_write - self.written)
            self.written = now
        await self.thread.serve(seconds)


class SharedGpu:
    """Trainers learn which GPU is theirs from what is Ray's scheduling strategy elsewhere."""

    base_weights = None

    def __init__(self, capacity: int):
        self.gpu, self.capacity, self.trainers = Server(), capacity, []

    def strategy(self) -> Server:
        return self.gpu

    def reserve(self) -> None:
        """There is nobody to ask."""

    def close(self) -> None:
        """There is nobody to give it back to."""

    async def check(self) -> None:
        """It never fails."""


class World:
    """A cluster, and what happens on it.

    Args:
        gpus: in nodes of 8.
        folder: of the sweep, where checkpoints are recorded; None records none.
        faults: by method of an actor, awaited with the actor and the arguments before each call: it may raise or wait.
    """

    def __init__(
        self, gpus: int, durations: Durations, cost: CollectorCost, folder: str | None = None,
        faults: dict[str, Callable[..., Awaitable[None]]] | None = None,
    ):  # fmt: skip
        self.gpus, self.durations, self.cost = gpus, durations, cost
        self.folder, self.faults = folder, faults or {}
        self.recorded: list[tuple[str, int]] = []
        """Run and step of each row of steps.parquet, as they came."""
        self.commits: list[tuple[str, int]] = []
        """Run and step of each checkpoint."""
        self.statuses: dict[str, tuple[str, str | None]] = {}
        """Last status and reason of each run."""
        self.calls: Counter[str] = Counter()
        """Of Ray, by method."""
        self.ends: Counter[str] = Counter()
        """Runs by how they ended, or by why they failed."""
        self.killed: Counter[str] = Counter()
        """Actors, by kind, that the driver took for dead; trainers of finished runs too."""
        self.trainers: Counter[str] = Counter()
        """Trainers that the driver has not stopped, by run."""
        self.most_runs = 0
        """Runs that had trainers at the same time, at most."""
        self.engines: list[Server] = []
        self.shared: list[Server] = []
        """GPUs of layer trainers, without those that join."""
        self.joined: list[float] = []
        """Times at which GPUs of whole-model runs began to take layer runs."""
        self.whole: list[Server] = []
        """GPUs of whole-model trainers, as many as there have been."""

    def create_actor(
        self, cls: type, name: str, needs: ActorResources, scheduling_strategy: Server | None = None, **options: Any
    ) -> SimpleNamespace:
        """In place of layersweep.orchestrator.execution.actors.create_actor."""
        make = {
            "Engine": lambda number: Engine(self, number),
            "Collector": lambda *args: Collector(self),
            "RolloutWorker": lambda *args: RolloutWorker(self),
            "VariantMaker": lambda *args: VariantMaker(self),
            "Trainer": lambda selection, seed, rank, ranks, gpus, reward: Trainer(
                self, scheduling_strategy, selection, seed, ranks
            ),
        }
        return SimpleNamespace(remote=make[cls.__name__])

    def ray(self) -> SimpleNamespace:
        """What the driver asks Ray itself."""
        nodes = [
            {"NodeID": f"{number:056x}", "Alive": True, "Resources": {"CPU": 1e4, "GPU": float(gpus)}}
            for number, gpus in enumerate([8] * (self.gpus // 8) + ([self.gpus % 8] if self.gpus % 8 else []))
        ]
        return SimpleNamespace(
            exceptions=ray.exceptions,
            put=lambda value: value,
            kill=self._kill,
            nodes=lambda: nodes,
            get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: nodes[0]["NodeID"]),
        )

    def _kill(self, actor: Actor, no_restart: bool = True) -> None:
        self.killed[type(actor).__name__] += 1
        if isinstance(actor, Trainer) and not actor.stopped:
            actor.stopped = True
            self.trainers[actor.run] -= 1
        actor.dead = actor.dead or no_restart

    def shared_gpu_pool(self) -> type[SharedGpuPool]:
        """Trainers hold shared GPUs as ever; there are no placement groups behind them."""
        world = self

        class SimulatedSharedGpuPool(SharedGpuPool):
            @classmethod
            async def create(
                cls, shares: Sequence[float], joining: Sequence[float], trainer: ActorResources, *args: Any
            ) -> SharedGpuPool:
                async def load(gpu: SharedGpu, number: int) -> None:
                    gpu.capacity = trainers_per_gpu(joining[number - len(shares)], trainer.gpus)
                    world.joined.append(asyncio.get_running_loop().time())

                now = [SharedGpu(trainers_per_gpu(share, trainer.gpus)) for share in shares]
                pool = cls(now, [SharedGpu(0) for _ in joining], load)
                world.shared = [gpu.gpu for gpu in now]
                return pool

        return SimulatedSharedGpuPool
