"""The cache of models that layersweep makes itself."""

import os
import shutil
from pathlib import Path


def cache_root() -> Path:
    """Folder of all models that layersweep makes: below $XDG_CACHE_HOME or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "layersweep" / "models"


def settle(scratch: Path, folder: Path) -> None:
    """Move a finished model to its folder, whole."""
    try:
        scratch.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)


def is_made(folder: Path) -> bool:
    """Whether the model is there: it is moved to its folder whole."""
    return (folder / "config.json").is_file()
