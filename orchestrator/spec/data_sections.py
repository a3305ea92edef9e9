"""The data sections of a spec: that of the task, and those of suites with a task of their own."""

from collections.abc import Callable
from typing import Any

from layersweep.rollout.data.data_config import DataConfig

from .sweep_spec import SweepSpec


def with_data(spec: SweepSpec, change: Callable[[DataConfig, str], DataConfig]) -> SweepSpec:
    """Return the spec with other data sections.

    Args:
        change: gives the section in place of one, whose field is `task.data` or `evaluation.suites[0].task.data`.
    """

    def changed(task: Any, field: str) -> Any:
        data = getattr(task, "data", None)
        if not isinstance(data, DataConfig):
            return task
        return task.model_copy(update={"data": change(data, f"{field}.data")})

    task = changed(spec.task, "task")
    suites = tuple(
        suite.model_copy(update={"task": changed(suite.task, f"evaluation.suites[{i}].task")})
        for i, suite in enumerate(spec.evaluation.suites)
    )
    evaluation = spec.evaluation.model_copy(update={"suites": suites})
    return spec.model_copy(update={"task": task, "evaluation": evaluation})
