"""Folders and URIs as users write them, and the home folder."""

from pathlib import Path

from layersweep.rollout.data.locations import local_path

from .errors import SpecError


def absolute_folder(folder: str, field: str = "output") -> str:
    """Return the folder or file as every process sees it, whatever its own working folder; URIs of elsewhere stay as
    they are.

    Raises:
        SpecError: it begins with `~name`, and this machine knows no home folder of that name.
    """
    path = local_path(folder)
    try:
        return folder if path is None else str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        user = path.partition("/")[0]
        raise SpecError(
            [f"{field}: {folder}: {user} names no home folder on this machine; write the path out"]
        ) from error


def check_home() -> None:
    """Make the home folder, where Ray keeps its token and layersweep the tiny models, unless it is there.

    Raises:
        SpecError: it cannot be made.
    """
    try:
        home = Path.home()
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        problem = f"HOME: the home folder cannot be made ({reason}); set HOME to a folder that you may write to"
        raise SpecError([problem]) from error
