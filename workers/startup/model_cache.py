"""The cache of models that layersweep makes itself."""

import os
import shutil
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of all models that layersweep makes: below $XDG_CACHE_HOME or ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "layersweep" / "models"


def publish(scratch: Path, folder: Path) -> None:
    """Rename a finished model's folder into place."""
    try:
        scratch.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)


def exists(folder: Path) -> bool:
    """Return whether a model is in its folder: it is moved there whole."""
    return (folder / "config.json").is_file()
