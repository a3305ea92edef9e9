"""vLLM's async scheduling on a CPU, where vLLM turns it off and the engine refuses it: its own scheduler, batch queue
and executor. A batch is computed when it is launched there, so what overlaps on a GPU is in order here; which batch is
scheduled when, and from what, is the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def allowed() -> Iterator[None]:
    """Have engines that are made meanwhile schedule ahead where `rollout.async_scheduling` asks for it."""
    from vllm.engine.arg_utils import EngineArgs

    from layersweep.rollout.engine import engine

    build, configure, asked = engine.engine_args, EngineArgs.create_engine_config, []

    def engine_args(model: str, architecture: str, config: Any, *args: Any) -> Any:
        asked.append(config.async_scheduling)
        return build(model, architecture, config.model_copy(update={"async_scheduling": False}), *args)

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = configure(self, *args, **kwargs)
        config.scheduler_config.async_scheduling = asked[-1]
        return config

    with (
        patch.object(engine, "engine_args", engine_args),
        patch.object(EngineArgs, "create_engine_config", create_engine_config),
    ):
        yield
