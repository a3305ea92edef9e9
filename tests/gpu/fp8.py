"""The engine with a KV cache in FP8 (`rollout.kv_cache_dtype`): its start, its self-check, and its speed."""

import json

from tests.gpu.common import setting
from tests.gpu.engine import measure
from tests.gpu.findings import say


def main() -> None:
    given = setting(__doc__)
    found = measure(given, "fp8", kv_cache_dtype="fp8")
    if (rates := given.scratch / "rates.json").is_file():
        before = json.loads(rates.read_text())
        for mixture in found.keys() - {"layers"}:
            faster = found[mixture] / before[mixture]
            say("fp8", f"{mixture} sequences, of the speed without", faster, "> 1", faster > 1, must=False)


if __name__ == "__main__":
    main()
    import os

    os._exit(0)  # vLLM's threads
