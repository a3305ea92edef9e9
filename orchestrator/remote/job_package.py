"""What a submitted sweep takes along to the cluster: this code, its spec, and a folder of the user's."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from layersweep.orchestrator.spec.errors import SpecError
from layersweep.orchestrator.spec.folders import absolute_folder
from layersweep.orchestrator.spec.sweep_spec import SweepSpec
from layersweep.orchestrator.spec.yaml_core import write_yaml

PACKAGES = ("orchestrator", "workers", "rollout", "policies", "deploy")
"""Of `layersweep`."""
SPEC = "sweep.yaml"


@contextlib.contextmanager
def shipment(spec: SweepSpec, folder: str | None) -> Iterator[str]:
    """A folder with the code, the spec as `sweep.yaml`, and the content of `folder`, for the time of a `with` block.

    The cluster's own installation needs the dependencies alone: what is shipped comes first on its import path.

    Raises:
        SpecError: `folder` is none, or holds something by the name of what is shipped.
    """
    with tempfile.TemporaryDirectory(prefix="layersweep-job-") as staging:
        if folder is not None:
            if not Path(folder).is_dir():
                raise SpecError([f"--working-dir {folder}: no such folder"])
            for name in ("layersweep", SPEC):
                if (Path(folder) / name).exists():
                    raise SpecError([f"--working-dir {folder}: its {name} would hide what is shipped; rename it"])
            shutil.copytree(folder, staging, dirs_exist_ok=True)
        hidden = shutil.ignore_patterns("__pycache__", *PACKAGES)
        shutil.copytree(str(files("layersweep")), f"{staging}/layersweep", ignore=hidden)
        for package in PACKAGES:
            hidden = shutil.ignore_patterns("__pycache__", "api")  # api: the root package itself, in a checkout
            shutil.copytree(str(files(f"layersweep.{package}")), f"{staging}/layersweep/{package}", ignore=hidden)
        data = write_yaml(spec.model_dump(mode="json"))
        Path(staging, SPEC).write_text(data, encoding="utf-8")
        yield staging


def at_home(spec: SweepSpec) -> SweepSpec:
    """The spec with an output that means the same in a job, whose working folder vanishes with it."""
    return spec.model_copy(update={"output": absolute_folder(spec.output)})


def environment(variables: list[str]) -> dict[str, str]:
    """Of `NAME=VALUE`, and of `NAME` alone with the value that it has here.

    Raises:
        SpecError: a name alone that is not set here.
    """
    unset = [v for v in variables if "=" not in v and v not in os.environ]
    if unset:
        raise SpecError([f"--env {name}: not set here; write {name}=VALUE" for name in unset])
    pairs = (v.partition("=") for v in variables)
    return {name: value if equals else os.environ[name] for name, equals, value in pairs}
