"""The engine under CUDA graphs (`rollout.cuda_graphs`): its start, its self-check over replays, and its speed."""

import json

from tests.gpu.common import setting
from tests.gpu.engine import measure
from tests.gpu.findings import say


def main() -> None:
    given = setting(__doc__)
    if not given.gpu:
        from tests.helpers import graphs_on_cpu

        graphs_on_cpu.prepare_v2_runner()
        graphs_on_cpu.install()
    found = measure(given, "graphs", cuda_graphs=True)
    (given.scratch / "graph_rates.json").write_text(json.dumps(found))
    if (rates := given.scratch / "rates.json").is_file():
        eager = json.loads(rates.read_text())
        for mixture in found.keys() - {"layers"}:
            faster = found[mixture] / eager[mixture]
            say("graphs", f"{mixture} sequences, of the eager engine's speed", faster, "> 1", faster > 1, must=False)


if __name__ == "__main__":
    main()
    import os

    os._exit(0)  # vLLM's threads
