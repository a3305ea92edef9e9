"""The shape of the model that a spec means: from a folder, from the hub, or for a plan without hub from a table."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.policies.config import PretrainedModel, TinyModel
from layersweep.policies.model.architecture import Architecture
from layersweep.policies.model.known_models import KNOWN_MODELS
from layersweep.workers.startup.gguf_model import gguf_folder, is_gguf

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these is in every folder with a tokenizer."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
                   "chat_template*", "*config.json")  # fmt: skip
"""What a run fetches of a hub's model to count prompts."""


class HubOutOfReach(ValueError):
    """A hub name, and neither hub nor cache that knows it."""


@dataclass(frozen=True)
class ResolvedModel:
    """What a spec's `model` section means on this machine."""

    architecture: Architecture
    source: str = ""
    """Where the architecture comes from, if not from the model's own config.json."""
    folder: Path | None = None
    """A local folder with the weights; None of a hub name and of the tiny model."""
    tokenizer: Path | None = None
    """A local folder with the tokenizer; None where a plan would have to fetch it, and of the tiny model."""


def resolve_model(spec: SweepSpec, from_table: bool) -> ResolvedModel:
    """The model's shape, and where its files are.

    Args:
        from_table: for a plan: where the hub is out of reach, take the study's models from known_models, and fetch
            nothing but config.json.

    Raises:
        ValueError: there is no such model, or it is of a kind that is not supported.
    """
    model = spec.model
    if isinstance(model, TinyModel):
        from layersweep.workers.startup.tiny_model import tiny_config

        # Two special tokens beside the alphabet.
        vocabulary = len(set(spec.task.build().alphabet)) + 2
        return ResolvedModel(Architecture.from_config(tiny_config(model, vocabulary)))
    try:
        folder = _folder(model)
        architecture = Architecture.from_folder(folder)
        local = is_gguf(model.path) or Path(model.path).expanduser().is_dir()
        if not local and not from_table:
            folder = _fetched_tokenizer(model)
    except HubOutOfReach as error:
        known = KNOWN_MODELS.get(model.path)
        if not from_table or known is None:
            raise ValueError(f"model.path: {error}") from error
        return ResolvedModel(
            Architecture.from_config(known), "from layersweep's own table, since the model hub is out of reach"
        )
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from error
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZERS)
    return ResolvedModel(architecture, "", folder if local else None, folder if has_tokenizer else None)


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


def _fetched_tokenizer(model: PretrainedModel) -> Path:
    """The folder of a hub model's tokenizer, fetched unless it is in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=TOKENIZER_FILES,
                                      local_files_only=not _hub_resolves()))  # fmt: skip
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubOutOfReach(
            f"the model hub did not give the tokenizer of {model.path} ({type(error).__name__}); name a local folder"
        ) from error


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
