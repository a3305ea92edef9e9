"""Output of `layersweep plan`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from layersweep.orchestrator.planning.cluster_shape import H200
from layersweep.orchestrator.planning.cost_model import Assumptions, estimate, micro_batch, update_bytes
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.report.format import size, wide_console
from layersweep.policies.wording import counted
from layersweep.rollout.config import CPU_KV_CACHE_MIB
from layersweep.workers.training.micro_batch_size import expected_kernels


def show_plan(plan: Plan, overrides: Mapping[str, Any] | None = None, hours: bool = True) -> None:
    """Print runs, sizes and counts.

    Args:
        overrides: values of the spec that were given beside its file, by dotted path.
        hours: also the GPU-hours on one H200, where the sweep uses GPUs.
    """
    spec, shape, training = plan.spec, plan.architecture, plan.spec.training
    console = wide_console()
    updates = training.epochs * training.minibatches
    facts = {
        "sweep": f"{spec.name} -> {plan.folder}",
        **({"overridden": ", ".join(f"{path}={value}" for path, value in overrides.items())} if overrides else {}),
        "model": f"{shape.name}, {shape.layers} layers, hidden {shape.hidden}, {shape.parameters:,} parameters, "
        f"{shape.layer_parameters:,} in a layer" + (f" ({plan.shape_source})" if plan.shape_source else ""),
        "task": f"{spec.task.type}, {spec.algorithm.type}",
        **_data(plan),
        **_overlong(plan),
        "each run": f"{counted(training.steps, 'steps')} of {counted(training.prompts_per_step, 'prompts')} x "
        f"{training.group_size} responses, {counted(updates, 'optimizer steps')} each, "
        f"at most {counted(training.max_response_tokens, 'tokens')} of a window of {plan.window}",
        "runs": f"{len(plan.runs)} to train, seeds {', '.join(map(str, spec.seeds))}; the base is scored besides",
        **_seeds(plan),
        **_search(plan),
        **_trials(plan),
        **_controls(plan),
        "to generate": _responses(plan) + (f"; without the search {_responses(plan.exhaustive)}" if plan.rungs else ""),
        "shared trunk": f"{size(plan.trunk_bytes)} once per node, in {training.dtype}",
        "an engine": engine_memory(plan),
        "micro batches": micro_batches(plan),
    }
    if hours and spec.resources.on_gpu():
        cost = estimate(plan)
        facts["GPU-hours"] = (
            f"about {cost.total:,.0f} of one {H200.name}: {cost.rollout:,.0f} generating, {cost.update:,.0f} training, "
            f"{cost.evaluation:,.0f} scoring"
        )
        facts["assumed"] = Assumptions().text(plan)
    if plan.unchecked:
        facts["checked by run"] = ", ".join(plan.unchecked)
    for name, fact in facts.items():
        console.print(f"{name:>14}  {fact}", markup=False)
    table = Table(
        "selection", "trains", "learning rate", "pushed per step", "trainer's own memory", "activations at most"
    )
    by_selection = {run.selection.name: run for run in (*plan.runs, *plan.combined, *plan.controls)}
    for run in by_selection.values():  # seeds change none of it
        selection = run.selection
        trained = run.control is None or run.control.trained
        rate = "by trial" if plan.trials else f"{run.peak_rate(training.learning_rate):g}" if trained else "not trained"
        table.add_row(
            selection.name, f"{plan.trainable_parameters(selection):,}", rate, size(plan.push_bytes(selection)),
            size(plan.trainer_bytes(selection)), size(update_bytes(plan, selection)),
        )  # fmt: skip
    console.print(table)
    if plan.combined:
        console.print("The layers of combined runs are picked when the layer runs are finished; their sizes here are "
                      "those of as many layers in the middle.")  # fmt: skip


def _data(plan: Plan) -> dict[str, str]:
    """Return rows of each data set, those dropped by reason, and prompts by split."""
    names = {f"evaluation.suites[{i}]": f"data of {s.name}" for i, s in enumerate(plan.spec.evaluation.suites)}
    return {names.get(section, "data"): str(report) for section, report in plan.data.items()}


def _overlong(plan: Plan) -> dict[str, str]:
    """Return prompts too long for the model, in training and each suite."""
    names = {f"evaluation.suites[{i}]": f"suite {s.name}" for i, s in enumerate(plan.spec.evaluation.suites)}
    found = [f"{names.get(prompts.section, 'training')}: {prompts.count:,} of {prompts.of:,} {prompts.split} prompts "
             f"{'give way to others' if prompts.replaced else 'dropped'}" for prompts in plan.overlong]  # fmt: skip
    return {"over-long": "; ".join(found)} if found else {}


def _seeds(plan: Plan) -> dict[str, str]:
    """How many more seeds the sweep needs, where its folder has scores already."""
    from layersweep.workers.storage.files import read_bytes

    if read_bytes(f"{plan.folder}/scores.parquet") is None:
        return {}
    from layersweep.orchestrator.statistics.seeds_needed import seeds_needed, seeds_text
    from layersweep.workers.storage.tables import CONTRIBUTION, SCORES

    try:
        scores, table = (schema.read(f"{plan.folder}/{schema.name}.parquet") for schema in (SCORES, CONTRIBUTION))
        found = seeds_needed(scores, table, plan.spec.evaluation.seed_sd)
    except (OSError, ValueError) as error:
        return {"more seeds": f"cannot be told: {error}"}
    return {"more seeds": seeds_text(found).removeprefix("Seeds needed: ")}


def _search(plan: Plan) -> dict[str, str]:
    """Return layers that train to each rung, where a search stops weak layers early."""
    if not (rungs := plan.rungs):
        return {}
    from layersweep.orchestrator.statistics.halving_schedule import cost

    trained, exhaustive = cost(rungs), rungs[0].layers * plan.spec.training.steps
    counts = ", ".join(f"{rung.layers} to step {rung.step}" for rung in rungs)
    return {"search": f"layers: {counts}; {trained:,} of {exhaustive:,} layer steps ({trained / exhaustive:.0%})"}


def _responses(plan: Plan) -> str:
    return f"{plan.training_responses:,} training and {plan.evaluation_responses:,} evaluation responses"


def _trials(plan: Plan) -> dict[str, str]:
    """Search of the learning rates, where the spec does not give them."""
    tuning, trials = plan.spec.training.learning_rate, plan.trials
    if not trials:
        return {}
    rates = ", ".join(f"{rate:g}" for rate in sorted(tuning.tune))
    tried = (
        "the full run, for every run" if tuning.reuse == "full" else "the full run and a middle layer, for their kind"
    )
    return {
        "learning rate": f"the best of {rates}, tried on {tried}: {counted(len(trials), 'trials')} of "
        f"{counted(tuning.steps, 'steps')} first"
    }


def _controls(plan: Plan) -> dict[str, str]:
    """Number of the controls, by type."""
    counts = Counter(run.control.type for run in plan.controls)
    named = ", ".join(f"{count} {name}" for name, count in counts.items())
    return {"controls": f"{len(plan.controls)} once the runs are finished: {named}"} if counts else {}


def engine_memory(plan: Plan) -> str:
    """Memory that an engine takes: its weights, and the KV cache of the responses that it generates."""
    rollout, weights = plan.spec.rollout, f"weights {size(plan.trunk_bytes)}"
    cache = None if rollout.kv_cache_memory_mib is None else f"KV cache {size(rollout.kv_cache_memory_mib << 20)}"
    if plan.spec.resources.on_gpu():
        share = f"{rollout.gpu_memory_utilization:.0%} of {rollout.tensor_parallel_size} GPU"
        return f"{weights}, {cache}" if cache else f"{share}: {weights}, the rest KV cache"
    return f"{weights}, {cache or f'KV cache {size(CPU_KV_CACHE_MIB << 20)}'}"


def micro_batches(plan: Plan) -> str:
    """Say how many tokens a trainer computes at a time, where the number comes from, and on GPUs by which attention."""
    training, on_gpu = plan.spec.training, plan.spec.resources.on_gpu()
    sizes = sorted({micro_batch(plan, run.selection) for run in (*plan.runs, *plan.combined)})
    several = f"{sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
    flash = expected_kernels(training, plan.architecture, on_gpu).varlen
    attention = f"; attention {'by FlashAttention' if flash else 'under masks'}" if on_gpu else ""
    if training.micro_batch_tokens:
        return f"{several} tokens, by training.micro_batch_tokens{attention}"
    machine = f"an {H200.name}" if on_gpu else "this machine"
    return f"{several} tokens by run, chosen from the memory of {machine}{attention}"
