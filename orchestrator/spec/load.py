"""Reading a spec from YAML or plain data, with errors that name field, reason and fix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from layersweep.workers.storage.files import read_bytes

from .errors import SpecError, shorten
from .explain import explain
from .overrides import override
from .sweep_spec import SweepSpec
from .yaml_core import read_yaml


def load_spec(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> SweepSpec:
    """Read and validate a spec.

    Args:
        source: path or fsspec URI of a YAML file, or plain data.
        overrides: values that replace those of the source, by dotted path (`training.steps`, see `overrides`).

    Raises:
        SpecError: the file is missing, is not YAML, or does not describe a sweep.
    """
    data = source if isinstance(source, Mapping) else read_spec(str(source))
    try:
        return parse_spec(override(data, overrides or {}))
    except RecursionError as error:
        raise SpecError([f"{shorten(source)}: nested too deeply"]) from error


def read_spec(path: str) -> dict[str, Any]:
    """Return the content of a spec file as it stands there.

    Raises:
        SpecError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = read_bytes(path)
    except (OSError, ImportError, ValueError) as error:  # ValueError: an unknown protocol, a null byte in the path
        reason = getattr(error, "strerror", None) or error
        fix = "; name the file of the spec" if isinstance(error, IsADirectoryError) else ""
        raise SpecError([f"{path}: {reason}{fix}"]) from error
    if content is None:
        raise SpecError([f"{path}: no such file"])
    try:
        data = read_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SpecError([f"{path}: not YAML: {error.reason} at byte {error.start}; save it as UTF-8 text"]) from error
    except ValueError as error:
        raise SpecError([f"{path}: not YAML: {error}"]) from error
    if not isinstance(data, dict):
        raise SpecError([f"{path}: a sweep is a mapping of fields (name, model, task, ...), not {_kind(data)}"])
    return data


def parse_spec(data: Mapping[str, Any]) -> SweepSpec:
    """Validate a spec given as plain data.

    Raises:
        SpecError: with every problem found, each with its field's path and the nearest valid spelling.
    """
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, SweepSpec)) from error


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
