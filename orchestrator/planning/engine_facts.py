"""Facts that an engine is started for, and whether it can serve another sweep as well."""

from typing import Any

from layersweep.policies.config import TinyModel

from .placement import whole_runs
from .plan import Plan


def trains_outside_layers(plan: Plan) -> bool:
    """Tell whether runs of the whole model, or of what is outside of its layers, use the engines."""
    return whole_runs(plan) > 0 or any(run.selection.outside for run in plan.runs)


def engine_facts(plan: Plan) -> dict[str, Any]:
    """Return what an engine's responses depend on, apart from the files of a model's folder, as plain data."""
    spec = plan.spec
    return {
        "model": spec.model.model_dump(mode="json"),
        "made for": spec.task.model_dump(mode="json") if isinstance(spec.model, TinyModel) else None,
        "commit": plan.source and plan.source.revision,
        "dtype": spec.training.dtype,
        "rollout": spec.rollout.model_dump(mode="json", exclude={"staleness"}),
        "gpus": spec.resources.engine.gpus,
    }


def same_engines(one: Plan, other: Plan) -> bool:
    """Tell whether engines that were started for one sweep can serve another: placed alike, and checked for as much."""
    return (
        engine_facts(one) == engine_facts(other)
        and one.spec.resources == other.spec.resources
        and trains_outside_layers(one) == trains_outside_layers(other)
    )
