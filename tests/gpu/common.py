"""What the parts share: their arguments, the model, clocks and memory."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layersweep.workers.startup.environment import worker_environment

SIZES = {
    # hidden, intermediate, layers, heads, KV heads, head_dim, vocabulary: Qwen3-1.7B, and a toy
    "cuda": (2048, 6144, 28, 16, 8, 128, 151_936),
    "cpu": (64, 128, 4, 4, 2, 32, 512),
}


@dataclass(frozen=True)
class Setting:
    """What a part was asked to run with."""

    device: str
    scratch: Path
    given: str | None

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    def model(self) -> tuple[str, dict]:
        """Return a folder with the model and its config; a random model is made by the part that needs it first."""
        if self.given:
            folder = Path(self.given)
        elif not (folder := self.scratch / "model").is_dir():
            self._make(folder)
        return str(folder), json.loads((folder / "config.json").read_text())

    def _make(self, folder: Path) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        hidden, inner, layers, heads, kv_heads, head_dim, vocabulary = SIZES[self.device]
        config = Qwen3Config(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, tie_word_embeddings=True,
            max_position_embeddings=8192, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            model = Qwen3ForCausalLM(config).to(torch.bfloat16)
        making = folder.with_suffix(".making")
        model.cpu().save_pretrained(making)
        making.rename(folder)


def setting(description: str) -> Setting:
    """Read a part's arguments, and set the environment as a sweep does; before torch is imported."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--model")
    args = parser.parse_args()
    os.environ.update(worker_environment(gpu=args.device == "cuda"))
    return Setting(args.device, args.scratch, args.model)


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], times: int = 3, before: int = 1) -> float:
    """Return the mean seconds of some work, after `before` runs that do not count."""
    for _ in range(before):
        work()
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - began) / times
