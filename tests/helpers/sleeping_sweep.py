"""A sweep by turns on a machine without a GPU, a program: `python -m tests.helpers.sleeping_sweep SPEC LOG`.

Everything is as on a GPU, driver, turns, engine, except that vLLM on CPUs keeps its weights and cache where they are
while it sleeps. A spec may not ask for that, so it is asked for here, and each switch is noted in LOG.
"""

import sys
from pathlib import Path

from layersweep.orchestrator.execution.actors import SweepActors
from layersweep.orchestrator.execution.launch import run_sweep
from layersweep.orchestrator.spec.load import load_spec


def sleeping(section, asleep: bool):
    """A spec or stage's spec with `rollout.sleep` changed, without validation."""
    return section.model_copy(update={"rollout": section.rollout.model_copy(update={"sleep": asleep})})


def main(path: str, log: str) -> int:
    switch, start = SweepActors.begin_phase, SweepActors._start_engine

    async def noted(stage: SweepActors, kind: str) -> None:
        await switch(stage, kind)
        with Path(log).open("a") as file:
            print(kind, file=file)

    async def start_awake(stage: SweepActors, engine: object) -> None:
        asked = stage.spec
        stage.spec = sleeping(asked, False)  # vLLM refuses the memory pool that only GPUs have
        try:
            await start(stage, engine)
        finally:
            stage.spec = asked

    SweepActors.begin_phase, SweepActors._start_engine = noted, start_awake
    return run_sweep(sleeping(load_spec(path), True), None, fresh=False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
