"""The folder of a sweep: what in it is the sweep's own, and whether a new one may begin there."""

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.workers.storage.files import find_files, remove_folder, resolve_uri

from .manifest import manifest_file

FILES = (
    "sweep.yaml", "contribution.parquet", "contribution_by_suite.parquet", "contribution_by_base_success.parquet",
    "scores.parquet", "steps.parquet", "dissection.parquet", "composition.parquet", "probe.parquet", "report.html",
    "profile.png", "report.png",
)  # fmt: skip
FOLDERS = ("checkpoints", "overlays", "rescored", "responses", "screening", "tensorboard", "variants")
LOCK = "lock"
"""Folder of sweep_lock, which outlives a sweep that is started afresh."""


def check_folder(folder: str, fresh: bool) -> None:
    """Refuse a folder in which a new sweep would mix with what is there.

    Args:
        fresh: an earlier sweep there is to be discarded.

    Raises:
        SpecError: it holds a sweep and `fresh` is false; or files that are no sweep's, which are never touched.
    """
    filesystem, path = resolve_uri(folder)
    if holds_sweep(folder):
        if not fresh:
            raise SpecError([
                f"name: {folder} holds a sweep already; go on with it (layersweep resume {folder}), choose another "
                "name, or give --fresh"
            ])  # fmt: skip
        return
    known = (*FILES, *FOLDERS, LOCK)
    if foreign := sorted({name.split("/")[0] for name in find_files(filesystem, path)} - set(known)):
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise SpecError([f"name: {folder} holds files of something else ({shown}); choose another name or output"])


def holds_sweep(folder: str) -> bool:
    """Tell whether a sweep has begun in a folder: it has a manifest, or a contribution table beside its spec."""
    filesystem, path = resolve_uri(folder)
    if filesystem.exists(manifest_file(path)):
        return True
    return all(filesystem.exists(f"{path}/{name}") for name in ("sweep.yaml", "contribution.parquet"))


def clear(folder: str) -> None:
    """Delete an earlier sweep: its own files and folders by name, and nothing else. A link to the folder stays.

    Nothing is deleted where no sweep has begun.
    """
    if not holds_sweep(folder):
        return
    filesystem, path = resolve_uri(folder)
    for name in FOLDERS:
        if filesystem.isdir(f"{path}/{name}"):
            remove_folder(filesystem, f"{path}/{name}")
    for name in FILES:
        if filesystem.exists(f"{path}/{name}"):
            filesystem.rm_file(f"{path}/{name}")
