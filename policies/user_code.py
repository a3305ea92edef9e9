"""A user's own code: an object in a file or a module that the spec names, and the source files behind it.

Nothing here runs the code but `load` and `make`.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import operator
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, field_validator

from .strict import StrictModel


class UserCode(StrictModel):
    """A section of the spec that names an object of the user's own."""

    path: str = Field(min_length=1)
    """`my_file.py:name`, or a dotted path such as `my_module.name`, whose module is in the working directory or an
    installed package. It travels with a submitted job, as does what it imports from its own folder."""
    settings: dict[str, Any] = {}
    """Keyword arguments for it."""

    @field_validator("path")
    @classmethod
    def _names_an_object(cls, path: str) -> str:
        module_and_name(path)
        return path

    @property
    def object_name(self) -> str:
        """Name of the object within its module."""
        return module_and_name(self.path)[1]


def module_and_name(path: str) -> tuple[str, str]:
    """Split a path into a file that ends in .py, or a module's dotted name, and the object's name in it.

    Raises:
        ValueError: it names no object.
    """
    module, _, name = path.rpartition(":") if ":" in path else path.rpartition(".")
    named = name != "py" and all(part.isidentifier() for part in name.split("."))
    if not named or not (module.endswith(".py") or all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"{path!r} names no object; write it as my_file.py:name, or my_module.name")
    return module, name


def load(path: str) -> Any:
    """Import the module of an object, and return the object.

    Raises:
        ValueError: says what cannot be imported, and why.
    """
    module, name = module_and_name(path)
    is_file = module.endswith(".py")
    where = "" if is_file else f" from {os.getcwd()} or the installed packages"
    for folder in _folders(Path(module).expanduser().absolute()) if is_file else (Path.cwd(),):
        _search(folder)
    try:
        found = _file_module(Path(module)) if is_file else importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ValueError(f"importing {module}{where} fails: {described(error)}{place(error)}") from error
    try:
        return operator.attrgetter(name)(found)
    except AttributeError as error:
        raise ValueError(f"{module} has no {name}") from error


def make(path: str, settings: dict[str, Any]) -> Any:
    """Import a class, or another callable, and return what it makes of settings.

    Raises:
        ValueError: says what cannot be imported or made, and why.
    """
    made_by = load(path)
    try:
        return made_by(**settings)
    except (Exception, SystemExit) as error:  # a user's class may raise anything
        raise ValueError(f"making {path} fails: {described(error)}{place(error)}") from error


def described(error: BaseException) -> str:
    """Return an exception's class and message, 500 characters at most."""
    message = "(without a message, as its __str__ fails)"
    with contextlib.suppress(Exception):
        message = str(error)
    return f"{type(error).__name__}: {message}"[:500]


def place(error: BaseException) -> str:
    """Return ` (file.py, line 7)` of the innermost frame outside of this package; nothing where there is none."""
    theirs = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_globals.get("__name__", "").startswith(("layersweep.", "__main__", "importlib"))
        and not frame.f_code.co_filename.startswith("<frozen")
    ]
    if isinstance(error, SyntaxError) or not theirs:  # a syntax error names its line itself
        return ""
    file, line = theirs[-1]
    return f" ({Path(file).name}, line {line})"


def sources(path: str) -> dict[str, Path]:
    """List the source files of an object: its module's, those that this imports from the same folder, and the
    `__init__.py` of their packages.

    Returns:
        Files by their place in the folder: that of the file (`import_root`), or the working directory for a module in
        it. Of a module that is installed it is its own file alone.

    Raises:
        ValueError: there is no such file or module.
    """
    root, first = _place_of(path)
    if root is None:
        return {first.name: first}
    found: dict[str, Path] = {}
    todo = [first]
    while todo:
        file = todo.pop()
        if (name := file.relative_to(root).as_posix()) not in found:
            found[name] = file
            todo += _imported_files(file, root)
            packages = (folder / "__init__.py" for folder in file.parents if folder != root)
            todo += [init for init in packages if init.is_relative_to(root) and init.is_file()]
    return dict(sorted(found.items()))


def _place_of(path: str) -> tuple[Path | None, Path]:
    """Return the folder of the user's own that an object's file is in, None for an installed one, and the file."""
    module, _ = module_and_name(path)
    if module.endswith(".py"):
        file = Path(module).expanduser().absolute()
        if not file.is_file():
            raise ValueError(f"{module}: no such file")
        return import_root(file), file
    parts = module.split(".")
    if here := next(_files(Path.cwd(), parts), None):
        return Path.cwd(), here
    spec = importlib.util.find_spec(parts[0])  # of the top package alone: it runs nothing
    folders = list(spec.submodule_search_locations or ()) if spec else []
    inner = (file for folder in folders for file in _files(Path(folder), parts[1:]))
    file = next(inner, None) if parts[1:] else Path(spec.origin) if spec and spec.origin else None
    if file is None:
        raise ValueError(f"{path}: no module {module} in {os.getcwd()} or the installed packages")
    return None, file


def _files(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Yield the file of a module below a folder, if there is one."""
    inner = folder.joinpath(*parts)
    candidates = (inner.with_suffix(".py"), inner / "__init__.py") if parts else (inner / "__init__.py",)
    yield from (file for file in candidates if file.is_file())


def _imported_files(file: Path, root: Path) -> Iterator[Path]:
    """Yield the files below a folder that one of them imports."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return  # `load` says so
    for node in nodes:
        if isinstance(node, ast.Import):
            modules = [(root, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[min(node.level, len(file.parents)) - 1] if node.level else root
            stem = node.module.split(".") if node.module else []
            modules = [(base, [*stem, alias.name]) for alias in node.names] + [(base, stem)]
        else:
            continue
        for base, parts in modules:
            for count in range(1, len(parts) + 1):  # a package's __init__ is imported too
                yield from (found for found in _files(base, parts[:count]) if found.is_relative_to(root))


def import_root(file: Path) -> Path:
    """Return the folder that a file is imported from: its own, or the one that its outermost package lies in."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _folders(file: Path) -> Iterator[Path]:
    """Yield the folders in which a file's imports may be: its own, and that of its package."""
    yield from dict.fromkeys((file.parent, import_root(file)))


def _file_module(file: Path) -> ModuleType:
    """Import a file as a module, whatever it is called; one in a package as a module of it, with relative imports."""
    file = file.expanduser().absolute()
    package, *inner = file.relative_to(import_root(file)).with_suffix("").parts
    if not inner:
        return _load_as(f"{package}_{_digest(file)}", file)
    folder = import_root(file) / package
    name = f"{package}_{_digest(folder)}"
    _load_as(name, folder / "__init__.py", [str(folder)])
    inner = inner[:-1] if inner[-1] == "__init__" else inner
    return importlib.import_module(".".join([name, *inner]))


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:8]


def _load_as(name: str, file: Path, submodules: list[str] | None = None) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=submodules)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _search(folder: Path) -> None:
    """Have modules looked for in a folder, after all others."""
    if str(folder) not in sys.path:  # an installed command does not have it
        sys.path.append(str(folder))
    importlib.invalidate_caches()
