"""The engine with a KV cache in FP8 (`rollout.kv_cache_dtype`): its start, its self-check, and its speed."""

from tests.gpu.common import setting
from tests.gpu.engine import compare, measure


def main() -> None:
    given = setting(__doc__)
    found = measure(given, "fp8", kv_cache_dtype="fp8")
    compare(given, "fp8", found, "rates.json", "the speed without")


if __name__ == "__main__":
    main()
    import os

    os._exit(0)  # vLLM's threads
