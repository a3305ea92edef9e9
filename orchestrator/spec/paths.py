"""Paths of a spec, made to mean the same in every process of a cluster."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from layersweep.policies.config import PretrainedModel
from layersweep.policies.user_code import module_and_name
from layersweep.rollout.data.data_config import DataConfig
from layersweep.rollout.data.locations import local_path
from layersweep.workers.startup.gguf_model import PACKAGED

from .data_sections import with_data
from .errors import SpecError
from .factorial import with_changed_levels
from .folders import absolute_folder
from .sweep_spec import SweepSpec
from .user_code_sections import with_code_paths


def with_absolute_paths(spec: SweepSpec, taken_along: str | None = None) -> SweepSpec:
    """Return the spec with absolute paths, those of its factors' values too, and with the text of a chat template in
    place of its file's name.

    Args:
        spec: with paths relative to the present working folder.
        taken_along: a folder that travels with a job, which runs in it: what is found there stays relative.

    Raises:
        SpecError: a chat template that cannot be read, a home folder that this machine does not know; or as for
            `factorial.sweeps_of`.
    """
    spec = with_changed_levels(spec, partial(with_absolute_paths, taken_along=taken_along))

    def outside(path: str, field: str) -> str:
        inside = taken_along is not None and not os.path.isabs(path) and Path(taken_along, path).exists()
        return path if inside else absolute_folder(path, field)

    def located(data: DataConfig, field: str) -> DataConfig:
        return data if data.path is None else data.model_copy(update={"path": outside(data.path, f"{field}.path")})

    spec = with_data(spec, located)
    changes: dict[str, Any] = {"output": absolute_folder(spec.output)}

    def with_code(path: str, field: str) -> str:
        module, name = module_and_name(path)
        return f"{outside(module, field)}:{name}" if module.endswith(".py") else path

    if spec.profile is not None:
        changes["profile"] = outside(spec.profile, "profile")
    if isinstance(spec.model, PretrainedModel):
        here = {"chat_template": _template(spec.model.chat_template)}
        path = local_path(spec.model.path)
        if path is not None and path not in PACKAGED and os.path.exists(os.path.expanduser(path)):
            here["path"] = outside(spec.model.path, "model.path")
        changes["model"] = spec.model.model_copy(update=here)
    return with_code_paths(spec.model_copy(update=changes), with_code)


def _template(template: str | None) -> str | None:
    """Return a chat template's text, read from its file unless it is text already."""
    if template is None or "{" in template:
        return template
    file = Path(os.path.expanduser(template))
    try:
        if file.exists() and not file.is_file():  # a pipe would keep its reader waiting
            raise OSError("not an ordinary file")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8; a null byte in the name
        reason = getattr(error, "strerror", None) or (
            "not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        )
        raise SpecError(
            [f"model.chat_template: {template}: {reason}; give a file of a template, or its text"]
        ) from error
