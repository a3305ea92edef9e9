"""The controls of a sweep, resolved against its selections."""

import difflib
from collections.abc import Sequence
from dataclasses import replace

from layersweep.orchestrator.spec.controls import LAYERS, Control
from layersweep.orchestrator.spec.layers import LayerSearch
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.selection import Selection


def controlled_selections(spec: SweepSpec, selections: Sequence[Selection]) -> list[tuple[Selection, str, Control]]:
    """Return each control's selection, under a name of its own, with the name of what it is a control of.

    Args:
        selections: those that the sweep trains.

    Raises:
        ValueError: a control of what the sweep does not train, or twice the same.
    """
    known = {selection.name: selection for selection in selections}
    found: dict[str, tuple[Selection, str, Control]] = {}
    for i, entry in enumerate(spec.controls):
        for name in _named(entry.of, known, f"controls[{i}].of"):
            for control in entry.controls():
                if not control.trained and known[name].kind == "layer" and isinstance(spec.layers, LayerSearch):
                    raise ValueError(
                        f"controls[{i}].of: a search may stop {name} early, and a random direction is made of a run "
                        "that has finished; leave it out, or name layers instead of a search"
                    )
                selection = replace(known[name], name=f"{name}@{control.label}")
                if selection.name in found:
                    raise ValueError(f"controls[{i}]: {selection.name} is there already; leave one out")
                found[selection.name] = selection, name, control
    return list(found.values())


def _named(of: Sequence[str], known: dict[str, Selection], where: str) -> list[str]:
    names = []
    for name in of:
        own = [other for other, selection in known.items() if selection.kind == "layer"] if name == LAYERS else [name]
        if not own or own[0] not in known:
            names_of = [*known, *[LAYERS] * any(selection.kind == "layer" for selection in known.values())]
            near = difflib.get_close_matches(name, names_of, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names_of)}"
            raise ValueError(f"{where}: the sweep trains no {name}; {hint}")
        names += own
    return list(dict.fromkeys(names))
