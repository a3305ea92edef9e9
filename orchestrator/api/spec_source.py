"""Specs as the public API takes them."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from layersweep.orchestrator.spec.sweep_spec import SweepSpec

SpecSource: TypeAlias = "SweepSpec | Mapping[str, Any] | str | os.PathLike[str]"


def load_spec(source: SpecSource, overrides: Mapping[str, Any] | None = None) -> "SweepSpec":
    """Read and validate the spec of a sweep.

    Args:
        source: a YAML file (path or fsspec URI), or a dict of fields. A spec that is loaded already is validated anew
            with the overrides.
        overrides: values by dotted path that replace those of the source, such as `{"training.steps": 50,
            "evaluation.suites[0].samples": 8}`.

    Raises:
        SpecError: no such file, not YAML, or fields that are unknown, missing or wrong; all problems are in `problems`.
    """
    from layersweep.orchestrator.spec.load import load_spec
    from layersweep.orchestrator.spec.sweep_spec import SweepSpec

    if isinstance(source, SweepSpec):
        source = source.model_dump(mode="json")
    return load_spec(source if isinstance(source, Mapping) else os.fspath(source), overrides)
