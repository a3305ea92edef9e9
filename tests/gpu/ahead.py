"""The engine under CUDA graphs with async scheduling (`rollout.async_scheduling`): its self-check, and its speed."""

import contextlib
import os

from tests.gpu.common import setting
from tests.gpu.engine import compare, measure


def main() -> None:
    given = setting(__doc__)
    allowed = contextlib.nullcontext()
    if given.gpu:
        os.environ["VLLM_GPU_SYNC_CHECK"] = "warn"  # tells in this part's log what in a step waits for the GPU
    else:
        from tests.helpers import async_on_cpu

        allowed = async_on_cpu.allowed()
    with allowed:
        found = measure(given, "ahead", cuda_graphs=given.gpu, async_scheduling=True)
    compare(given, "ahead", found, "graph_rates.json" if given.gpu else "rates.json", "the speed without")


if __name__ == "__main__":
    main()
    os._exit(0)  # vLLM's threads
