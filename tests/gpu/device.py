"""The device: its name, versions, arithmetic and bandwidth as they are; everything else is measured against these."""

import platform
from importlib.metadata import version

from tests.gpu.common import seconds, setting
from tests.gpu.findings import say

PACKAGES = ("torch", "transformers", "deepspeed", "ray")


def main() -> None:
    given = setting(__doc__)
    import torch

    n = 8192 if given.gpu else 256
    a, b = (torch.randn(n, n, device=given.device).to(torch.bfloat16) for _ in range(2))
    source = torch.empty(2**32 if given.gpu else 2**20, dtype=torch.uint8, device=given.device)
    name = torch.cuda.get_device_name() if given.gpu else platform.processor() or "CPU"
    say("device", "name", name)
    say("device", "versions", ", ".join(f"{package} {version(package)}" for package in PACKAGES))
    say("device", "bfloat16 product, TFLOP/s", 2 * n**3 / seconds(lambda: a @ b, 10, 3) / 1e12)
    say("device", "copy, TB/s read and written", 2 * source.numel() / seconds(source.clone, 5) / 1e12)
    if given.gpu:
        say("device", "memory, GiB", torch.cuda.get_device_properties(0).total_memory / 2**30)
    given.model()


if __name__ == "__main__":
    main()
