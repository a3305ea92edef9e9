"""Output of `plan --cluster`."""

import textwrap

import yaml
from rich.table import Table

from layersweep.orchestrator.planning.cluster_forecast import ClusterPlan
from layersweep.orchestrator.planning.cost_model import Assumptions, GpuHours
from layersweep.orchestrator.planning.split_search import Split
from layersweep.orchestrator.report.format import size, wide_console


def show_cluster_plan(found: ClusterPlan) -> None:
    """Print schedule, hours, network, and the memory of each kind of GPU."""
    plan, cluster, schedule = found.plan, found.cluster, found.schedule
    resources, gpu = plan.spec.resources, cluster.gpu
    own = "sharing GPUs with trainers" if resources.engine.gpus < 1 else "on GPUs of their own"
    waves = f"layer runs in waves of {schedule.layer_runs}: {schedule.layer_waves}"
    if found.allocation.joining:
        waves = (
            f"{schedule.layer_runs} layer runs at a time, {schedule.last_layer_runs} once whole-model runs have ended"
        )
    if found.allocation.whole_runs:
        waves += " in turn with" if found.allocation.in_turn else ";"
        waves += f" whole-model runs in waves of {found.allocation.whole_runs}: {schedule.whole_waves}"
    facts = {
        "cluster": f"{cluster} ({gpu.memory / 2**30:.1f} GiB, {gpu.flops['bfloat16'] / 1e12:.0f} bfloat16 TFLOP/s, "
        f"{gpu.bandwidth / 1e12:.2f} TB/s each); enough CPUs are assumed",
        "engines": f"{resources.engines} of {resources.engine.gpus:g} GPU, {own}, "
        f"batching {plan.spec.rollout.batching}",
        "schedule": waves,
        "GPU-hours": f"busy: {_hours(found.mixed)} with runs batched together; {_hours(found.swapped)} with one run's "
        "batch at a time",
        "wall clock": f"at least {schedule.hours:,.1f} h, which holds {schedule.hours * cluster.gpus:,.0f} GPU-hours; "
        f"bound by {schedule.bound_by}",
        "assumed": Assumptions().text(plan).replace("one run's batch at a time, nothing waiting", "nothing waiting"),
    }
    for network in found.network:
        facts[f"a step of {network.runs}"] = (
            f"weights {size(network.pushed)} to engines, {size(network.between_nodes)} of it between nodes; experience "
            f"{size(network.experience)} to trainers; gradients {size(network.gradients)} between ranks"
        )
    console = wide_console()
    for name, fact in facts.items():
        console.print(f"{name:>25}  {fact}", markup=False)
    table = Table("GPUs", "actors", "weights", "KV cache", "overlays", "trunk", "trainers' own", "passes",
                  "activations", "contexts", "at most")  # fmt: skip
    for memory, count in found.memory.items():
        parts = (memory.weights, memory.cache, memory.overlays, memory.trunk, memory.trainers, memory.passes,
                 memory.activations, memory.contexts)  # fmt: skip
        shown = (size(part) if part else "" for part in parts)
        full = " (over!)" if memory.total > gpu.memory else ""
        table.add_row(str(count), memory.actors, *shown, size(memory.total) + full)
    console.print(table)
    if any(memory.total > gpu.memory for memory in found.memory):
        console.print("over!: activations at their most do not fit; lower training.micro_batch_tokens", style="bold")


def show_split(found: ClusterPlan, split: Split | None) -> None:
    """Print a division of the GPUs with fewer hours, as sections for the spec, and why it has fewer.

    Args:
        found: the forecast of the plan as it is.
        split: the best other one, if any is worth it.
    """
    console = wide_console()
    if split is None:
        console.print(f"{'another split':>25}  none that fits takes fewer hours, by the same arithmetic")
        return
    now, then = found.schedule, split.forecast.schedule
    console.print(
        f"{'another split':>25}  at least {then.hours:,.1f} h instead of {now.hours:,.1f}, by the same arithmetic, "
        f"with {then.layer_runs} layer runs at a time; what bounds it is {then.bound_by}, and here {now.bound_by}:",
        markup=False,
    )
    changes = {name: dict(fields) for name, fields in split.changes.items()}
    if found.plan.spec.resources.concurrent_runs is None:
        del changes["resources"]["concurrent_runs"]  # which is the default
    text = yaml.safe_dump(changes, sort_keys=False, default_flow_style=None)
    console.print(textwrap.indent(text, " " * 27), markup=False, highlight=False)


def _hours(cost: GpuHours) -> str:
    return (
        f"about {cost.total:,.0f} ({cost.rollout:,.0f} generating, {cost.update:,.0f} training, "
        f"{cost.evaluation:,.0f} scoring)"
    )
