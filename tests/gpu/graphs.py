"""The engine under CUDA graphs (`rollout.cuda_graphs`): its start, its self-check over replays, and its speed."""

import json

from tests.gpu.common import setting
from tests.gpu.engine import compare, measure


def main() -> None:
    given = setting(__doc__)
    if not given.gpu:
        from tests.helpers import graphs_on_cpu

        graphs_on_cpu.prepare_v2_runner()
        graphs_on_cpu.install()
    found = measure(given, "graphs", cuda_graphs=True)
    (given.scratch / "graph_rates.json").write_text(json.dumps(found))
    compare(given, "graphs", found, "rates.json", "the eager engine's speed")


if __name__ == "__main__":
    main()
    import os

    os._exit(0)  # vLLM's threads
