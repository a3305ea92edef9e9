"""The shape of the model that a spec means: from a folder, from the hub, or for a plan without hub from a table."""

from pathlib import Path

from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import TinyModel
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.checkpoint import non_finite, stored_tensors
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.workers.startup.model_source import HubOutOfReach, ModelSource, resolve_source


def shape_of(spec: SweepSpec, from_table: bool) -> tuple[Architecture, str, ModelSource | None]:
    """Return the model's shape; where it is not the model's own config.json that says so, where it comes from; and the
    source that actors load from (None for the tiny model, and where the shape is from the table).

    Args:
        from_table: for a plan: where the hub is out of reach, take the study's models from known_models,
            and of a local folder look at config.json alone.

    Raises:
        ValueError: there is no such model, or it is of a kind that is not supported.
    """
    if isinstance(spec.model, TinyModel):
        from layersweep.workers.startup.tiny_model import tiny_config

        # Two special tokens beside the alphabet.
        vocabulary = len(set(spec.task.build().alphabet)) + 2
        return Architecture.from_config(tiny_config(spec.model, vocabulary)), "", None
    try:
        if not from_table:
            _check_weights(Path(spec.model.path).expanduser())
        source, folder = resolve_source(spec.model)
        return Architecture.from_folder(folder), "", source
    except HubOutOfReach as error:
        known = KNOWN_MODELS.get(spec.model.path)
        if not from_table or known is None:
            raise ValueError(f"model.path: {error}") from error
        return Architecture.from_config(known), "from layersweep's own table, since the model hub is out of reach", None
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from error


def _check_weights(folder: Path) -> None:
    """Check that a local model folder has weights that are safe to load, whole and finite, and a tokenizer.

    Raises:
        ValueError: it has not.
    """
    if not folder.is_dir():
        return  # a hub name, or nothing: said elsewhere
    if not any(folder.glob("*.safetensors")):
        pickled = " (pickled weights, *.bin and *.pt, are not loaded: they can run code)" if any(
            path.suffix in (".bin", ".pt", ".pth") for path in folder.iterdir()) else ""  # fmt: skip
        raise ValueError(f"{folder} holds no *.safetensors{pickled}")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise ValueError(f"{folder} holds no tokenizer (tokenizer.json)")
    if found := non_finite(stored_tensors(folder)):
        raise ValueError(f"{found} holds NaN or infinite values: the checkpoint is damaged")
