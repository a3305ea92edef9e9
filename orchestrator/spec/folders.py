"""Folders and URIs as users write them."""

from pathlib import Path

from .errors import SpecError


def absolute_folder(folder: str, field: str = "output") -> str:
    """The folder or file as every process sees it, whatever its own working folder; URIs stay as they are.

    Raises:
        SpecError: it begins with `~name`, and this machine knows no home folder of that name.
    """
    try:
        return folder if "://" in folder else str(Path(folder).expanduser().absolute())
    except RuntimeError as error:
        user = folder.partition("/")[0]
        raise SpecError(
            [f"{field}: {folder}: {user} names no home folder on this machine; write the path out"]
        ) from error
