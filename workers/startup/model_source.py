"""The base model of a sweep: one object, resolved once by the plan, from which every actor loads."""

import os
import pickle
import socket
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from layersweep.policies.config import PretrainedModel
from layersweep.rollout.data.locations import local_path

from .gguf_model import gguf_folder, is_gguf
from .model_cache import exists, publish

LOADED = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken"]
"""Files of a hub model that are fetched: weights, configuration, tokenizer. Never pickles."""
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


class HubOutOfReach(ValueError):
    """A hub name, and neither hub nor cache has it."""


@dataclass(frozen=True)
class ModelSource:
    """Source of the base model, as every actor gets it.

    `path` is a folder that every node can read, a GGUF file or packaged model (gguf_model), or a hub name; then
    `revision` is the commit that the spec's revision meant when the sweep was planned. Of the tiny model, which one
    node has made, `files` refers to the content of its files by name in Ray's object store, because Ray repeats the
    arguments of an actor that it starts again, and does not keep large ones.
    """

    path: str
    revision: str | None = None
    """Commit of a hub model; None of a folder."""
    trust_remote_code: bool = False
    """Whether code that the model brings may run."""
    files: bytes | None = None
    """Pickled reference. Of one among an actor's arguments Ray warns in every sweep that it might go out of scope; of a
    pickled one it keeps the object as long as the process that put it there, which is the driver."""
    chat_template: str | None = None
    """Jinja text in place of the model's own template."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template."""

    @classmethod
    def of_tiny(cls, path: str, files: dict[str, bytes]) -> "ModelSource":
        """Return the source of a tiny model, by its folder and the content of the files; called by the driver."""
        import ray

        return cls(path, files=ray.cloudpickle.dumps(ray.put(files)))

    def here(self) -> str:
        """Return the folder to load from on this node; what is not there yet is fetched first.

        Raises:
            HubOutOfReach: the hub does not give it, and it is not in the cache of this node.
        """
        if self.revision is not None:
            return str(self.fetch())
        if is_gguf(self.path):
            return str(gguf_folder(self.path))
        folder = Path(self.path)
        if self.files is not None and not exists(folder):
            import ray

            write_folder(ray.get(pickle.loads(self.files)), folder)
        return self.path

    def fetch(self, weights: bool = True) -> Path:
        """Return the folder of a hub model in this node's cache; what is not there yet is fetched first.

        Args:
            weights: whether they are needed.

        Raises:
            HubOutOfReach: the hub does not give it.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        wanted = LOADED + ["*.py"] * self.trust_remote_code
        try:
            folder = snapshot_download(
                self.path,
                revision=self.revision,
                allow_patterns=wanted,
                ignore_patterns=None if weights else WEIGHTS,
                local_files_only=not hub_resolves(),
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise HubOutOfReach(
                f"{self.path} at {self.revision} is not in this node's cache, and the model hub did not give it "
                f"({type(error).__name__})"
            ) from error
        if weights and not any(Path(folder).glob("*.safetensors")):
            raise HubOutOfReach(f"{self.path} at {self.revision}: no *.safetensors in {folder}")
        return Path(folder)


def resolve_source(model: PretrainedModel) -> tuple[ModelSource, Path]:
    """Find a pretrained model: its source for the actors, and a folder with at least its config.json on this machine.

    A local folder is taken as it is, a GGUF file is converted into the cache. Of a hub name only config.json is
    fetched; its commit is what `revision` becomes.

    Raises:
        HubOutOfReach: a hub name that neither the hub nor the cache knows.
        ValueError: a GGUF file or its reader is missing; a URI.
    """
    shared = {"chat_template": model.chat_template, "template_arguments": model.template_arguments}
    if is_gguf(model.path):
        return ModelSource(model.path, **shared), gguf_folder(model.path)
    if local_path(model.path) is None:
        raise ValueError(
            f"{model.path}: a model is a local folder or OWNER/NAME on the hub, not a URI; copy it here first"
        )
    path = Path(model.path).expanduser()
    source = ModelSource(str(path), trust_remote_code=model.trust_remote_code, **shared)
    looks_local = path.is_absolute() or model.path.startswith(".") or model.path.count("/") != 1
    if path.is_dir() or looks_local:
        return source, path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        offline = not hub_resolves()  # the library itself would try for half a minute
        config = hf_hub_download(model.path, "config.json", revision=model.revision, local_files_only=offline)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HubOutOfReach(
            f"there is no folder {model.path}, and the model hub did not give its config.json "
            f"({type(error).__name__}); name an existing folder in Hugging Face format"
        ) from error
    folder = Path(config).parent  # .../snapshots/<commit>
    return replace(source, path=model.path, revision=folder.name), folder


def hub_resolves() -> bool:
    """Return whether the hub's name can be looked up from here, or a proxy does that for us."""
    from huggingface_hub.constants import ENDPOINT

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the content of a folder's files by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def write_folder(files: dict[str, bytes], folder: Path) -> None:
    """Write what `read_folder` returned; the folder appears at once and whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    publish(scratch, folder)
