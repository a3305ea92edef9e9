"""A sweep with sleeping engines and no GPU, a program: `python -m tests.helpers.sleeping_sweep SPEC LOG`.

Everything is as on a GPU, driver, phases, engine, except that vLLM on CPUs keeps its weights and cache where they are
while it sleeps. A spec may not ask for that, so it is asked for here, and each switch is noted in LOG.
"""

import sys
from pathlib import Path

from layersweep.orchestrator.execution.engine_pool import EnginePool
from layersweep.orchestrator.execution.launch import run_sweep
from layersweep.orchestrator.spec.load import load_spec


def sleeping(section, asleep: bool):
    """A spec with `rollout.sleep` changed, without validation."""
    return section.model_copy(update={"rollout": section.rollout.model_copy(update={"sleep": asleep})})


def main(path: str, log: str) -> int:
    switch, start = EnginePool.begin_phase, EnginePool.start_engine

    async def noted(engines: EnginePool, phase: str) -> None:
        await switch(engines, phase)
        with Path(log).open("a") as file:
            print(phase, file=file)

    async def start_awake(engines: EnginePool, engine: object) -> None:
        asked = engines.spec
        engines.spec = sleeping(asked, False)  # vLLM refuses the memory pool that only GPUs have
        try:
            await start(engines, engine)
        finally:
            engines.spec = asked

    EnginePool.begin_phase, EnginePool.start_engine = noted, start_awake
    return run_sweep(sleeping(load_spec(path), True), None, fresh=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
