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
        names = frozenset(trained_weights(selection, shape))
        if not names:
            known = shape.block_weights if selection.layers else shape.outer_weights
            raise ValueError(
                f"{field}.modules: {selection.modules!r} matches no parameter; there are {', '.join(known)}"
            )
        for what in (names, selection.name):
            if what in seen:
                other, name = seen[what]
                same = "trains the same parameters as" if what is names else "would have the same name as"
                fix = "leave one out" if what is names else "write one of the expressions in other words"
                raise ValueError(f"{field}: {selection.name} {same} {name} of {other}; {fix}")
            seen[what] = field, selection.name
    return [selection for _, selection in fields]


def trained_weights(selection: Selection, shape: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that a selection trains, by Hugging Face name."""
    layers = range(shape.layers) if selection.trains_all else selection.layers
    weights = shape.outer_weights | shape.weights_of(layers)
    return {name: size for name, size in weights.items() if selection.trains(name)}


@cache
def count_trained(selection: Selection, shape: Architecture, active: bool = False) -> int:
    """Return the number of parameters that a selection trains.

    Args:
        active: count of a block's experts only as many as compute a token.
    """
    share = shape.active_experts / shape.experts if active and shape.experts else 1
    weights = trained_weights(selection, shape).items()
    return sum(int(prod(size) * (share if ".experts." in name else 1)) for name, size in weights)
