"""Package of a submitted sweep: this code, its spec, code and a folder of the user's, in one zip file that Ray uploads.

Ray would pack a folder itself, but silently less than is there (.gitignore, .rayignore) and silently more (what links
point to). Here everything travels except what is named on the terminal.
"""

import contextlib
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib.resources import files
from pathlib import Path

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.factorial import with_changed_levels
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.user_code_sections import with_code_paths
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.policies.user_code import import_root, module_and_name, sources

PACKAGES = ("orchestrator", "workers", "rollout", "policies", "deploy")
"""Packages of `layersweep`."""
SPEC = "sweep.yaml"
"""Name of the spec in the package."""
BEGUN = "the sweep has begun in"
"""Words of the driver's log, before the sweep's folder, once nothing stands in the sweep's way."""
LEFT_OUT = (".git", ".venv", "__pycache__", ".env", ".env.*", ".ssh", ".aws", ".netrc", ".pypirc", ".git-credentials",
            "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx")  # fmt: skip
"""Names of files and folders that never travel: secrets, and what is made anew anywhere."""
MOST_BYTES = 100 << 20
"""Size of a package that a Ray dashboard refuses (ray 2.60: DASHBOARD_CLIENT_MAX_SIZE)."""
USER_CODE = "user_code"
"""Folder of the package with files of the user's own code; one within it for each folder that they come from."""
_SHOWN = 8


@dataclass(frozen=True)
class _Entry:
    """File or empty folder of a package."""

    name: str
    """Path in the package; of a folder with a slash at the end."""
    source: Path


@contextlib.contextmanager
def job_package(spec: SweepSpec, folder: str | None, most_bytes: int = MOST_BYTES) -> Iterator[str]:
    """Make a zip file of the code, the spec as `sweep.yaml` and the content of `folder`, for a `with` block.

    Rewards, tasks, environments and algorithms of the user's own travel too, unless they are in `folder`. Only this
    user can read the file. Names what is left out on standard error. The cluster's own installation needs the
    dependencies alone: a job's working folder comes first on its import path.

    Args:
        folder: the user's, or None. Links to what lies in it travel as copies.
        most_bytes: size that the package must stay below.

    Raises:
        SpecError: `folder` is none, has links that leave it or what cannot be read, holds something by the name of
            what is shipped, or is too large.
    """
    entries = _code()
    spec, own = _user_code(spec, folder)
    entries += own
    if own:
        print(f"takes along {', '.join(entry.source.name for entry in own)}", file=sys.stderr)
    if folder is not None:
        found, left_out = _content(folder)
        entries += found
        if left_out:
            more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
            print(f"--working-dir {folder}: left out {', '.join(left_out[:_SHOWN])}{more}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="layersweep-job-") as private:
        path = f"{private}/package.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_header(SPEC, 0o600), write_yaml(spec.model_dump(mode="json")))
            for entry in entries:
                _add(archive, entry, most_bytes)
                if archive.fp.tell() >= most_bytes:
                    raise SpecError([_too_large(folder, entries, most_bytes)])
        if os.path.getsize(path) >= most_bytes:  # with its directory
            raise SpecError([_too_large(folder, entries, most_bytes)])
        yield path


def _code() -> list[_Entry]:
    """List the files of `layersweep` by their place in the package."""
    found = []
    for package, hidden in [("layersweep", PACKAGES), *((f"layersweep.{name}", ("api",)) for name in PACKAGES)]:
        # In a checkout the root package is the folder `api` of `orchestrator`.
        root = Path(str(files(package)))
        for source in sorted(root.rglob("*")):
            parts = source.relative_to(root).parts
            if source.is_file() and "__pycache__" not in parts and parts[0] not in hidden:
                found.append(_Entry("/".join([*package.split("."), *parts]), source))
    return found


def _user_code(spec: SweepSpec, folder: str | None) -> tuple[SweepSpec, list[_Entry]]:
    """Return the spec with the places in the package of the user's own code, and the files to take along for it.

    Raises:
        SpecError: there is no such code.
    """
    found: dict[str, Path] = {}
    roots: list[Path] = []

    def place(path: str, field: str) -> str:
        module, name = module_and_name(path)
        is_file = module.endswith(".py")
        if is_file and not os.path.isabs(module):
            return path  # in the folder that travels
        try:
            files = sources(path)
        except ValueError as error:
            raise SpecError([f"{field}: {error}"]) from error
        if not is_file:
            # Modules of the working folder keep their names; installed ones the cluster must have.
            here = {inner: file for inner, file in files.items() if file == Path.cwd() / inner}
            found.update((n, file) for n, file in here.items() if folder is None or not Path(folder, n).exists())
            return path
        root = import_root(Path(module))
        if root not in roots:
            roots.append(root)
        prefix = f"{USER_CODE}/{roots.index(root)}"
        found.update((f"{prefix}/{inner}", file) for inner, file in files.items())
        return f"{prefix}/{Path(module).relative_to(root).as_posix()}:{name}"

    changed = with_code_paths(with_changed_levels(spec, partial(with_code_paths, change=place)), place)
    return changed, [_Entry(name, file) for name, file in sorted(found.items())]


def _content(folder: str) -> tuple[list[_Entry], list[str]]:
    """List what of a user's folder travels, and name what is left out, with the reason where it is not plain."""
    root = Path(os.path.realpath(os.path.expanduser(folder)))
    if not root.is_dir():
        raise SpecError([f"--working-dir {folder}: no such folder"])
    for name in ("layersweep", SPEC, USER_CODE):
        if os.path.lexists(root / name):
            raise SpecError([f"--working-dir {folder}: its {name} would hide what is shipped; rename it"])
    found: list[_Entry] = []
    left_out: list[str] = []
    refused: list[str] = []

    def visit(directory: Path, name: str, above: tuple[Path, ...]) -> None:
        children = sorted(os.listdir(directory))
        if not children and name:
            found.append(_Entry(f"{name}/", directory))
        for child in children:
            inner, source = f"{name}/{child}" if name else child, directory / child
            target = Path(os.path.realpath(source))
            if _never_travels(child):
                left_out.append(inner)
            elif "\\" in child or not _is_utf8(child):
                left_out.append(f"{inner!r} (a zip file cannot hold this name)")
            elif not target.is_relative_to(root):
                refused.append(f"--working-dir {folder}: {inner} links to {target}, outside of it; put a copy there")
            elif source.is_symlink() and any(map(_never_travels, target.relative_to(root).parts)):
                left_out.append(f"{inner} (links to {target.relative_to(root)})")
            elif not target.exists():
                left_out.append(f"{inner} (links to nothing)")
            elif target == directory or target in above:
                left_out.append(f"{inner} (links to a folder that holds it)")
            elif not (target.is_dir() or target.is_file()):
                left_out.append(f"{inner} (neither file nor folder)")
            elif not os.access(target, os.R_OK | (os.X_OK if target.is_dir() else 0)):
                refused.append(f"--working-dir {folder}: {inner} cannot be read")
            elif target.is_dir():
                visit(target, inner, (*above, directory))
            else:
                found.append(_Entry(inner, target))

    visit(root, "", ())
    if refused:
        raise SpecError(refused)
    return found, left_out


def _never_travels(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(name: str, mode: int) -> zipfile.ZipInfo:
    """Make an entry's header, with a fixed date: equal content makes equal packages, which Ray uploads once."""
    header = zipfile.ZipInfo(name)
    header.compress_type = zipfile.ZIP_DEFLATED
    header.external_attr = mode << 16
    return header


def _add(archive: zipfile.ZipFile, entry: _Entry, most_bytes: int) -> None:
    """Add a file or an empty folder; of a file that makes the package too large, only a part."""
    if entry.name.endswith("/"):
        archive.writestr(_header(entry.name, stat.S_IFDIR | 0o700), b"")
        return
    with entry.source.open("rb") as source:
        mode = os.fstat(source.fileno()).st_mode & 0o700 | 0o600
        with archive.open(_header(entry.name, stat.S_IFREG | mode), "w", force_zip64=True) as target:
            while (part := source.read(1 << 20)) and archive.fp.tell() < most_bytes:
                target.write(part)


def _too_large(folder: str | None, entries: list[_Entry], most_bytes: int) -> str:
    sizes = {entry.name: entry.source.stat().st_size for entry in entries if not entry.name.endswith("/")}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    return (
        f"--working-dir {folder}: a Ray cluster takes less than {most_bytes >> 20} MiB, packed; "
        f"the largest are {', '.join(f'{name} ({sizes[name] / 2**20:,.1f} MiB)' for name in largest)}; "
        "put data in a bucket, or where all nodes see it, and name that place in the spec"
    )


def job_environment(variables: list[str]) -> dict[str, str]:
    """Read `NAME=VALUE`, and `NAME` alone with the value that it has here.

    Raises:
        SpecError: a name alone that is not set here.
    """
    unset = [v for v in variables if "=" not in v and v not in os.environ]
    if unset:
        raise SpecError([f"--env {name}: not set here; write {name}=VALUE" for name in unset])
    pairs = (v.partition("=") for v in variables)
    return {name: value if equals else os.environ[name] for name, equals, value in pairs}
