"""An algorithm whose trainers die while their weights are on the way, and a sweep of it.

    python -m tests.helpers.mortal_trainer --deaths 20     # minutes; prints how often and a verdict

After an update each trainer, by a throw of a coin, kills itself within a tenth of a second of offering its weights:
before the engine has asked for them, while it joins, between two tensors, or just after. With `weight_transfer: direct`
they go from process to process, so nothing but recovery brings them to the engine then.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from layersweep.policies.algorithms.grpo import GRPO

LATEST = 0.1
"""Seconds after an offer at which a trainer dies, at most."""


class MortalGRPO(GRPO):
    """GRPO as it is, in trainers that die."""

    marks: str
    """A folder with a file for each death."""
    deaths: int
    """Trainers that die, in all."""

    def advantages(self, *args: Any) -> np.ndarray:
        module = sys.modules.get("layersweep.workers.transport.weight_transfer")
        if module and not hasattr(module.WeightSender, "mortal"):  # in a trainer, once
            offer, module.WeightSender.mortal = module.WeightSender.offer, True

            def mortal(sender: Any, weights: Any) -> Any:
                if random.random() < 0.5 and self._claims_a_death():
                    threading.Timer(random.uniform(0, LATEST), os.kill, (os.getpid(), signal.SIGKILL)).start()
                return offer(sender, weights)

            module.WeightSender.offer = mortal
        return super().advantages(*args)

    def _claims_a_death(self) -> bool:
        for number in range(self.deaths):
            try:
                os.close(os.open(f"{self.marks}/{number}", os.O_CREAT | os.O_EXCL))
                return True
            except FileExistsError:
                continue
        return False


def sweep_of_mortals(folder: Path, deaths: int) -> int:
    """Run the small demo of `chaos` with trainers that die; return how many did.

    Raises:
        AssertionError: it does not end with exit code 0.
    """
    from tests.helpers.chaos import spec, start

    (marks := folder / "deaths").mkdir()
    algorithm = {"path": "tests.helpers.mortal_trainer.MortalGRPO", "type": "custom"}
    settings = {"clip_low": 0.2, "clip_high": 0.28, "marks": str(marks), "deaths": deaths}
    path = spec(
        folder,
        rollout={"weight_transfer": "direct"},
        recovery={"checkpoint_every": 1, "retries": deaths, "patience": 60},
    )
    data = yaml.safe_load(path.read_text()) | {"algorithm": algorithm | {"settings": settings}}
    path.write_text(yaml.safe_dump(data))
    log = folder / "log.txt"
    assert start("run", str(path), log).wait() == 0, log.read_text()[-5000:]
    return len(list(marks.iterdir()))


def main() -> None:
    from tests.helpers.chaos import check, undisturbed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layersweep-mortal-") as root:
        expected, began = undisturbed(Path(root) / "undisturbed"), time.monotonic()
        (folder := Path(root) / "sweep").mkdir()
        died = sweep_of_mortals(folder, args.deaths)
        check(folder, expected)
        log = (folder / "log.txt").read_text()
        print("\n".join(line for line in log.splitlines() if "recovering" in line))
        print(f"{died} trainers died with weights on the way, in {time.monotonic() - began:.0f} s")
        print("every run completed, every step once, the same table")


if __name__ == "__main__":
    main()
