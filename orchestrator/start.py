"""The folder of a sweep before it starts."""

import fsspec
import yaml

from workers.files import write_atomically

from .plan import Plan
from .spec import SpecError


def prepare_folder(plan: Plan, fresh: bool) -> None:
    """Write the resolved spec to `<output>/<name>/sweep.yaml`.

    Raises:
        SpecError: there are results of an earlier run, and `fresh` was not asked for.
    """
    filesystem, path = fsspec.core.url_to_fs(plan.folder)
    if filesystem.exists(path):
        if not fresh and filesystem.exists(f"{path}/contribution.parquet"):
            raise SpecError([f"name: {plan.folder} holds results already; choose another name, or give --fresh"])
        if fresh:
            filesystem.rm(path, recursive=True)
    resolved = yaml.safe_dump(plan.spec.model_dump(mode="json"), sort_keys=False)
    write_atomically(f"{plan.folder}/sweep.yaml", lambda file: file.write(resolved.encode()))
