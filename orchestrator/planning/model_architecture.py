"""The shape of the model that a spec means: from a folder, from the hub, or for a plan without hub from a table."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import PretrainedModel, TinyModel
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.workers.startup.gguf_model import gguf_folder, is_gguf


class HubOutOfReach(ValueError):
    """A hub name, and neither hub nor cache that knows it."""


def shape_of(spec: SweepSpec, from_table: bool) -> tuple[Architecture, str]:
    """The model's shape and, where it is not the model's own config.json that says so, where it comes from.

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
        return Architecture.from_config(tiny_config(spec.model, vocabulary)), ""
    try:
        if not from_table:
            _check_weights(Path(spec.model.path).expanduser())
        return Architecture.from_folder(_folder(spec.model)), ""
    except HubOutOfReach as error:
        known = KNOWN_MODELS.get(spec.model.path)
        if not from_table or known is None:
            raise ValueError(f"model.path: {error}") from error
        return Architecture.from_config(known), "from layersweep's own table, since the model hub is out of reach"
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from error


def _check_weights(folder: Path) -> None:
    """Whether a local model folder has weights that are safe to load, and a tokenizer.

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


def _folder(model: PretrainedModel) -> Path:
    """A local folder as it is; of a hub name, the folder with its config.json (weights come when they are needed)."""
    if is_gguf(model.path):
        return gguf_folder(model.path)
    path = Path(model.path).expanduser()
    looks_local = path.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1
    if path.is_dir() or looks_local:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        offline = not _hub_resolves()  # the library itself would try for half a minute
        config = hf_hub_download(model.path, "config.json", revision=model.revision, local_files_only=offline)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubOutOfReach(
            f"there is no folder {model.path}, and the model hub did not give its config.json "
            f"({type(error).__name__}); name an existing folder in Hugging Face format"
        ) from error
    return Path(config).parent


def _hub_resolves() -> bool:
    """Whether the hub's name can be looked up from here, or a proxy does that for us."""
    from huggingface_hub.constants import ENDPOINT

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True
