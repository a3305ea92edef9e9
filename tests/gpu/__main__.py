"""Run the check: each part in a process of its own, a table at the end; exit code 1 where one has failed.

python -m tests.gpu                        # on a GPU: a random model of Qwen3-1.7B's shape, some thirteen minutes
python -m tests.gpu engine trainer         # these parts alone
python -m tests.gpu --device cpu           # small sizes, without a GPU: finds the check's own mistakes
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.findings import Finding, findings, table

PARTS = {
    "device": 30,
    "trainer": 120,
    "attention": 60,
    "transfer": 60,
    "engine": 150,
    "graphs": 180,
    "ahead": 120,
    "fp8": 120,
    "plain": 100,
}
"""Parts, in the order in which they run, and seconds after which one has failed on a GPU."""
CPU_PATIENCE = 6
"""Factor of these seconds without a GPU: a machine that does other things besides starts slowly."""


def run_part(name: str, arguments: list[str], seconds: int, log: Path) -> list[Finding]:
    """Run one part; what it found, its seconds last."""
    began = time.perf_counter()
    command = [sys.executable, "-m", f"tests.gpu.{name}", *arguments]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"not done in {seconds} s"
        with contextlib.suppress(ProcessLookupError):  # what it has started, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = log.read_text(errors="replace").splitlines()
    if code:
        print("\n".join(lines[-30:]))
    ended = Finding(name, "ended", f"{time.perf_counter() - began:.0f} s", "exit code 0", code == 0)
    return [*findings(lines), ended]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", help="model folder, in place of a random model")
    parser.add_argument("--output", default="gpu-check", help="folder of the table and the parts' output")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="layersweep-gpu-") as scratch:
        arguments = ["--device", args.device, "--scratch", scratch]
        arguments += ["--model", args.model] if args.model else []
        for name in args.parts or PARTS:
            print(f"{name} ...", flush=True)
            limit = PARTS[name] * (CPU_PATIENCE if args.device == "cpu" else 1)
            found += run_part(name, arguments, limit, folder / f"{name}.log")
            (folder / "table.md").write_text(table(found) + "\n")  # whatever becomes of the next part
    print(f"\n{table(found)}\n\nin {folder}: this table and what each part said")
    return int(any(finding.verdict == "FAIL" for finding in found))


if __name__ == "__main__":
    sys.exit(main())
