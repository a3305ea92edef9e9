"""Resolving a spec's model on this machine: its shape, from a folder, the hub or a table, and its files."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import TinyModel
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.workers.startup.model_source import HubOutOfReach, ModelSource, resolve_source

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these is in every folder with a tokenizer."""


@dataclass(frozen=True)
class ResolvedModel:
    """Model of a spec as found on this machine."""

    architecture: Architecture
    shape_source: str = ""
    """Origin of the architecture, if not the model's own config.json."""
    source: ModelSource | None = None
    """Source that actors load from; None for the tiny model, and where the shape is from the table."""
    folder: Path | None = None
    """A local folder with the weights; None of a hub name and of the tiny model."""
    tokenizer: Path | None = None
    """A local folder with the tokenizer; None where a plan would have to fetch it, and of the tiny model."""


def resolve_model(spec: SweepSpec, from_table: bool, task: Any = None) -> ResolvedModel:
    """Find the model's shape, and where its files are.

    Args:
        from_table: for a plan: where the hub is out of reach, take the study's models from known_models, and fetch
            nothing but config.json.
        task: the task that a tiny model is made for; None builds it.

    Raises:
        ValueError: there is no such model, or it is of a kind that is not supported.
    """
    if isinstance(spec.model, TinyModel):
        from layersweep.workers.startup.tiny_model import tiny_config

        try:
            with ExitStack() as stack:
                if task is None:
                    task = spec.task.build()
                    stack.callback(getattr(task, "close", lambda: None))
                # Two special tokens beside the alphabet.
                vocabulary = len(set(task.alphabet)) + 2
        except (ValueError, OSError) as error:
            raise ValueError(f"task: {error}") from error
        return ResolvedModel(Architecture.from_config(tiny_config(spec.model, vocabulary)))
    try:
        source, folder = resolve_source(spec.model)
        architecture = Architecture.from_folder(folder)
        on_hub = source.revision is not None
        if on_hub and not from_table:
            folder = source.fetch(weights=False)
    except HubOutOfReach as error:
        known = KNOWN_MODELS.get(spec.model.path)
        if not from_table or known is None:
            raise ValueError(f"model.path: {error}") from error
        return ResolvedModel(
            Architecture.from_config(known), "from layersweep's own table, since the model hub is out of reach"
        )
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a home folder of no user
        raise ValueError(f"model.path: {' '.join(str(error).split())[:500]}") from error
    tokenizer = folder if any((folder / name).is_file() for name in TOKENIZERS) else None
    return ResolvedModel(architecture, "", source, None if on_hub else folder, tokenizer)
