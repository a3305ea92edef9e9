"""A finished sweep's folder made by hand, and `layersweep serve` over it in a process of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from layersweep.cli import DEMO
from layersweep.orchestrator.spec.load import load_spec
from layersweep.orchestrator.spec.yaml_core import write_yaml
from layersweep.policies.selection import Selection
from layersweep.workers.startup.tiny_model_training import character_tokenizer
from layersweep.workers.storage.tables import COMPOSITION, CONTRIBUTION

ALPHABET = "0123456789abcdefghijklmnop+-=:"
"""With padding and end, the 32 tokens of the model."""
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}={% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
RUNS = {
    Selection.full(): (0,), Selection.layer(0): (0,), Selection.layer(1): (0,), Selection.layer(2): (0,),
    Selection.layer(3): (0, 1), Selection.several((0, 2)): (0,), Selection.part((1,), "attention"): (0,),
}  # fmt: skip
"""Seeds of each run."""


def make_sweep(folder: Path, model: str, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """Write a sweep over a copy of a model of four layers, its runs moved by noise; returns its folder.

    Args:
        model: that of tests/conftest.py, or another one with its tokenizer.
    """
    base, sweep = folder / "model", folder / "demo"
    shutil.copytree(model, base)
    if tokenizer is None:
        tokenizer = character_tokenizer(ALPHABET)
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    weights, rows = load_file(base / "model.safetensors"), [_row("base", "base", [], None)]
    for number, (selection, seeds) in enumerate(RUNS.items()):
        rows.append(_row(selection.name, selection.kind, list(selection.layers), selection.modules))
        for seed in seeds:
            torch.manual_seed(10 * number + seed)
            target = sweep / "overlays" / f"{selection.name}-seed{seed}"
            target.mkdir(parents=True)
            own = {name: w + 0.05 * torch.randn_like(w) for name, w in weights.items() if selection.trains(name)}
            save_file(own, target / "model.safetensors")
    with (sweep / "contribution.parquet").open("wb") as file:
        CONTRIBUTION.write(CONTRIBUTION.frame(rows), file)
    stack = {"stack": "stack-00-01-x0.5", "rule": "given", "members": ["layer-00", "layer-01"], "strength": 0.5}
    with (sweep / "composition.parquet").open("wb") as file:
        COMPOSITION.write(COMPOSITION.frame([stack | {"split": split} for split in ("selection", "final")]), file)
    spec = load_spec(DEMO, {"output": str(folder), "model": str(base)})
    (sweep / "sweep.yaml").write_text(write_yaml(spec.model_dump(mode="json")))
    return str(sweep)


def _row(name: str, kind: str, layers: list[int], modules: str | None) -> dict[str, object]:
    return {"selection": name, "kind": kind, "layers": layers, "modules": modules, "model_layers": 4,
            "layer": layers[0] if len(layers) == 1 else None, "status": "completed", "score": 0.5}  # fmt: skip


class Server:
    """`layersweep serve` as a shell starts it, in a process group of its own; ready when made."""

    def __init__(self, sweep: str, *words: str, environment: Mapping[str, str] = os.environ):
        command = [sys.executable, "-m", "layersweep", "serve", sweep, "--port", "0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0, env=environment)
        self.said = ""
        while "token" not in self.said.rpartition("\n")[0].rpartition("\n")[2]:
            line = self.process.stdout.readline()
            assert line, f"it ended with {self.process.wait()} after saying:\n{self.said}"
            self.said += line
        self.url = re.search(r"http://\S+", self.said)[0]
        found = re.search(r"^token: (\S+)$", self.said, re.MULTILINE)
        self.token = found[1] if found else None

    def stop(self) -> None:
        """End it, if it has not ended yet."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(30)
