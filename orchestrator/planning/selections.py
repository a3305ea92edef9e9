"""The selections of a sweep, resolved against the model's shape."""

from functools import cache
from math import prod

from layersweep.orchestrator.spec.layers import resolve_layers
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.selection import Selection


def swept_selections(spec: SweepSpec, shape: Architecture) -> list[Selection]:
    """Return what gets a run each, in order: full, the layers, then the entries of `sweep`.

    Raises:
        ValueError: layers that the model lacks, a selection without a parameter, two of the same parameters or name.
    """
    fields = [("include_full", Selection.full())] if spec.include_full else []
    fields += [("layers", Selection.layer(k)) for k in resolve_layers(spec.layers, shape.layers)]
    for i, entry in enumerate(spec.sweep):
        try:
            fields += [(f"sweep[{i}]", selection) for selection in entry.selections(shape.layers)]
        except ValueError as error:
            raise ValueError(f"sweep[{i}].{error}") from error
    seen: dict[object, tuple[str, str]] = {}
    for field, selection in fields:
        weights = trained_weights(selection, shape)
        if not weights:
            known = shape.block_weights if selection.layers else shape.outer_weights
            what = "matrix" if selection.lora else "parameter"
            raise ValueError(f"{field}.modules: {selection.modules!r} matches no {what}; there are {', '.join(known)}")
        if problem := _rank_problem(selection, weights):
            raise ValueError(f"{field}.lora.rank: {problem}")
        trained = frozenset(weights), selection.lora
        for what in (trained, selection.name):
            if what in seen:
                other, name = seen[what]
                same = "trains the same parameters as" if what is trained else "would have the same name as"
                fix = "leave one out" if what is trained else "write one of the expressions in other words"
                raise ValueError(f"{field}: {selection.name} {same} {name} of {other}; {fix}")
            seen[what] = field, selection.name
    return [selection for _, selection in fields]


def _rank_problem(selection: Selection, weights: dict[str, tuple[int, ...]]) -> str | None:
    """Say where adapters have a higher rank than the matrix that they change; None where none have."""
    for name, size in weights.items() if selection.lora else ():
        if selection.lora.rank > min(size):
            return f"{selection.lora.rank} is more than {name} has, which is {size[0]} x {size[1]}"
    return None


def trained_weights(selection: Selection, shape: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that a selection trains, or of the matrices that its adapters change, by
    Hugging Face name."""
    layers = range(shape.layers) if selection.trains_all else selection.layers
    weights = shape.outer_weights | shape.weights_of(layers)
    return {name: size for name, size in weights.items() if selection.trains(name)}


@cache
def count_served(selection: Selection, shape: Architecture) -> int:
    """Return the number of entries of the weights that travel to an engine: adapters merged into their matrices."""
    return sum(map(prod, trained_weights(selection, shape).values()))


@cache
def count_trained(selection: Selection, shape: Architecture) -> int:
    """Return the number of parameters that a selection trains; of adapters rank * (out + in) a matrix."""
    if selection.lora is None:
        return count_served(selection, shape)
    return selection.lora.rank * sum(map(sum, trained_weights(selection, shape).values()))


@cache
def count_active(selection: Selection, shape: Architecture) -> float:
    """Return the number of a selection's parameters that compute a token: of experts those that are chosen."""
    if not shape.experts:
        return count_trained(selection, shape)
    of_experts = sum(prod(size) for name, size in trained_weights(selection, shape).items() if ".experts." in name)
    return count_trained(selection, shape) - of_experts * (1 - shape.active_experts / shape.experts)
