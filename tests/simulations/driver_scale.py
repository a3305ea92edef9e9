"""A thousand runs on 512 GPUs: what stops first? `python -m tests.simulations.driver_scale`

The driver is the real one (tests.simulations.stand_ins says what is not), its clock virtual: it moves on by what the
driver computes, by RAY_CALL for each call of an actor, and by what its tasks wait for. So a driver that has more to do
than time to do it in makes the sweep longer, as it would. The collector is measured by itself first (collector_cost).
The driver looks at the cluster's size every 100 s here, else that would be most of what there is to compute.

The sweep is the study's of the 8B model with 27 seeds, its durations those of cost_model; then the same
with everything that GPUs do 10, 100 and 1000 times faster.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import AsyncMock, patch

import yaml

from layersweep.orchestrator.execution.actors import max_concurrent_runs
from layersweep.orchestrator.execution.driver import drive
from layersweep.orchestrator.execution.manifest import SweepManifest
from layersweep.orchestrator.execution.progress import Progress
from layersweep.orchestrator.execution.sweep_session import SweepSession
from layersweep.orchestrator.planning.cluster_shape import H200
from layersweep.orchestrator.planning.cost_model import Assumptions, rollout_seconds, update_seconds
from layersweep.orchestrator.planning.plan import Plan, Run
from layersweep.orchestrator.report.format import plain_console
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.policies.selection import Selection
from tests.simulations.collector_cost import SAMPLES, measure
from tests.simulations.stand_ins import Durations, World
from tests.simulations.virtual_time import VirtualClock, VirtualLoop

PRESET = Path(__file__).parents[2] / "deploy" / "sweeps" / "qwen3-8b-numinamath-grpo.yaml"
RAY_CALL = 0.0016
"""CPU seconds of the driver's process for one call of an actor, those of Ray's threads among them. The demo's driver
takes 7.6 ms a run-step (median of driver_cpu_seconds on two busy cores), for 4.4 calls and 0.6 ms of its own."""
LINK = 1e9
"""Bytes per second at which weights are pushed and checkpoints written: assumed."""
GPUS, SEEDS, ENGINES, STEPS = 512, 27, 165, 10
RESPONSES = 8000
"""Of an evaluation: 2,000 prompts, 4 samples."""
PATIENCE = 14_400.0
"""Seconds of recovery.patience that let everything answer."""


@dataclass(frozen=True)
class Outcome:
    """What was seen. Times are in seconds of the sweep's virtual clock, where nothing else is said."""

    ends: Counter[str]
    """Runs, by how they ended."""
    seconds: float
    driver_cpu: float
    """CPU seconds of the driver's own code, the stand-ins' within it."""
    calls: Counter[str]
    engines_busy: float
    """Share of the time."""
    trainers_busy: float
    """The same of layer trainers' GPUs."""
    collector_busy: float
    stalest: float
    """Age of the tables' oldest content, at most."""
    collector_wait: float
    """Longest that one of its calls took."""
    replaced: int
    """Trainers that were replaced because the driver took them, or an engine, for dead."""
    restarts: int
    """The same of collector and rollout worker."""
    concurrent: int
    """Runs that train at the same time, at most."""

    @property
    def events(self) -> int:
        """Steps, evaluations and checkpoints."""
        return sum(self.calls[name] for name in ("record_step", "record_scores", "commit"))


def study(folder: str, seeds: int, steps: int, layers: int = 36, **changes: dict[str, object]) -> Plan:
    """The study's sweep of the 8B model, with so many seeds; `changes` are of sections of the spec."""
    data = yaml.safe_load(PRESET.read_text())
    suites = [{"name": "math", "prompts": RESPONSES // SAMPLES, "samples": SAMPLES}]
    data |= {"seeds": list(range(seeds)), "output": folder, "evaluation": {"suites": suites}}
    data["training"]["steps"] = steps
    data["resources"]["concurrent_runs"] = None
    for section, fields in changes.items():
        data[section] = data.get(section, {}) | fields
    spec = parse_spec(data)
    shape = Architecture.from_config(KNOWN_MODELS[spec.model.path])
    selections = [Selection.full(), *map(Selection.layer, range(layers))]
    return Plan(spec, shape, tuple(Run(selection, seed) for seed in spec.seeds for selection in selections))


def durations(plan: Plan, faster: float = 1.0) -> Durations:
    """Of an H200 by the roofline, all `faster` times faster."""
    assumed, training = Assumptions(), plan.spec.training
    batch = training.prompts_per_step * training.group_size
    suite = sum(suite.prompts * suite.samples for suite in plan.spec.evaluation.suites)
    layer = Selection.layer(0)
    kinds = [Selection.full(), *map(Selection.layer, range(plan.architecture.layers))]
    update = {s.name: update_seconds(plan, s, H200, assumed) / training.steps / faster for s in kinds}
    return Durations(
        rollout=rollout_seconds(plan, batch, H200, assumed) / faster,
        evaluation=rollout_seconds(plan, suite, H200, assumed) / faster,
        update=lambda selection: update[selection.name],
        push=plan.push_bytes(layer) / LINK / faster,
        checkpoint=plan.trainer_bytes(layer) / LINK / faster,
        start=60 / faster,
    )


def simulate(
    plan: Plan, world: World, worked: Callable[[World], float] | None = None, limit: float | None = None
) -> Outcome:
    """The sweep to its end.

    Args:
        limit: seconds of the virtual clock after which it is given up, with TimeoutError.
        worked: gives the seconds that the driver has been busy; its own CPU time and its calls of Ray by default.
    """
    began = time.process_time()

    def busy() -> float:
        return worked(world) if worked else time.process_time() - began + world.calls.total() * RAY_CALL

    package = "layersweep.orchestrator.execution"
    with ExitStack() as stack:
        for module in ("actors", "clients", "ray_nodes", "health", "engine_slot"):
            stack.enter_context(patch(f"{package}.{module}.ray", world.ray()))
        for module in ("run_controller", "base_score", "driver", "progress"):
            stack.enter_context(patch(f"{package}.{module}.time", VirtualClock))
        stack.enter_context(patch(f"{package}.driver.CLUSTER_CHECK_SECONDS", 100.0))
        log = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(patch(f"{package}.progress.plain_console", lambda _: plain_console(log)))
        stack.enter_context(patch(f"{package}.actors.create_actor", world.create_actor))
        stack.enter_context(patch(f"{package}.actors.gang", lambda *_: None))
        stack.enter_context(patch(f"{package}.actors.remove_placement_group", lambda group: None))
        stack.enter_context(patch(f"{package}.actors.wait_until_placed", AsyncMock(return_value=True)))
        stack.enter_context(patch(f"{package}.actors.SharedGpuPool", world.shared_gpu_pool()))
        with asyncio.Runner(loop_factory=partial(VirtualLoop, busy)) as runner:
            seconds = runner.run(_drive(plan, limit))
        concurrent = max_concurrent_runs(plan)
    return Outcome(
        ends=world.ends,
        seconds=seconds,
        driver_cpu=time.process_time() - began,
        calls=world.calls,
        engines_busy=_share(world.engines, seconds),
        trainers_busy=_share(world.shared, seconds),
        collector_busy=world.collector.thread.busy / seconds,
        stalest=world.collector.stalest,
        collector_wait=world.collector.longest_wait,
        replaced=world.calls["device"] - len(plan.runs),
        restarts=world.killed["Collector"] + world.killed["RolloutWorker"],
        concurrent=min(len(plan.runs), concurrent),
    )


async def _drive(plan: Plan, limit: float | None) -> float:
    progress = Progress([run.name for run in plan.runs], plan.spec.training.steps)
    await asyncio.wait_for(drive(plan, SweepManifest.begin(plan), progress, SweepSession(None, [plan])), limit)
    return asyncio.get_running_loop().time()


def _share(servers: list, seconds: float) -> float:
    return sum(server.busy for server in servers) / len(servers) / seconds


def row(name: str, plan: Plan, seen: Outcome) -> dict[str, str]:
    """A line of the table, by column."""
    driver = seen.driver_cpu + seen.calls.total() * RAY_CALL
    return {
        f"{'GPUs work':<20}": name,
        "at once": f"{seen.concurrent}",
        "hours": f"{seen.seconds / 3600:.2f}",
        "completed": f"{seen.ends['completed'] - 1}/{len(plan.runs)}",  # without the base
        "replaced": f"{seen.replaced}",
        "restarts": f"{seen.restarts}",
        "own ms": f"{1e3 * seen.driver_cpu / seen.events:.2f}",
        "calls": f"{seen.calls.total() / seen.events:.1f}",
        "driver": f"{driver / seen.seconds:.2%}",
        "engines": f"{seen.engines_busy:.0%}",
        "trainers": f"{seen.trainers_busy:.0%}",
        "collector": f"{seen.collector_busy:.1%}",
        "tables s": f"{seen.stalest:.0f}",
        "answer s": f"{seen.collector_wait:.0f}",
    }


def main() -> None:
    cost = measure(100, 100, RESPONSES // SAMPLES).cost()
    print("collector, CPU seconds:", ", ".join(f"{name} {value:.2g}" for name, value in vars(cost).items()))
    print(f"{GPUS} GPUs, {ENGINES} of them engines; {STEPS} steps\n")
    cases = [("as they do", 1, PATIENCE), ("10 times faster", 10, PATIENCE), ("100 times faster", 100, PATIENCE),
             ("1000 times faster", 1000, PATIENCE), ("patience 300 s", 1, 300.0)]  # fmt: skip
    for number, (name, faster, patience) in enumerate(cases):
        with TemporaryDirectory() as folder:
            plan = study(folder, SEEDS, STEPS, resources={"engines": ENGINES}, recovery={"patience": patience})
            line = row(name, plan, simulate(plan, World(GPUS, durations(plan, faster), cost)))
        if number == 0:
            print("  ".join(line))
        print("  ".join(f"{value:>{len(column)}}" for column, value in line.items()), flush=True)


if __name__ == "__main__":
    main()
