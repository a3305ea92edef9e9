"""The tiny base model: made, warmed up by supervised training, gated on its accuracy, cached by its recipe."""

import asyncio
import tempfile
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from layersweep.policies.config import TinyModel
from layersweep.policies.strict import StrictModel
from layersweep.rollout.environments.base import InitialState
from layersweep.rollout.environments.episodes import play
from layersweep.rollout.types import Completions, Response

from .model_cache import exists, publish
from .tiny_model import cache_folder, tiny_config

PAD, END = "<pad>", "<end>"


class WarmupFailed(RuntimeError):
    """The warmed-up base is not what RL can start from."""


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character, after padding (0) and end of sequence (1)."""
    vocabulary = {token: i for i, token in enumerate([PAD, END, *sorted(set(alphabet))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def make_tiny_model(config: TinyModel, task_config: StrictModel) -> str:
    """Return the folder of the tiny model; make it now unless it is cached.

    Raises:
        WarmupFailed: its accuracy at temperature 1 is below `minimum_accuracy`.
    """
    folder = cache_folder(config, task_config)
    if exists(folder):
        return str(folder)
    task = task_config.build()
    tokenizer = character_tokenizer(task.alphabet)
    torch.manual_seed(config.seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(**tiny_config(config, len(tokenizer)), pad_token_id=0, eos_token_id=1, bos_token_id=None)
    )
    _warm_up(model, tokenizer, config, task)
    accuracy = _accuracy(model, tokenizer, task, config.seed)
    if accuracy < config.minimum_accuracy:
        raise WarmupFailed(
            f"model: the warmed-up base answers {accuracy:.3f} of the prompts at temperature 1, below "
            f"model.minimum_accuracy {config.minimum_accuracy}; raise model.warmup_steps"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    publish(scratch, folder)
    return str(folder)


def _encode(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels [pairs, longest]; the response and its end are learned, prompt and padding not."""
    rows = [(tokenizer.encode(prompt), tokenizer.encode(answer) + [1]) for prompt, answer in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (prompt, answer) in enumerate(rows):
        whole = torch.tensor(prompt + answer)
        ids[i, : len(whole)] = whole
        labels[i, len(prompt) : len(whole)] = whole[len(prompt) :]
    return ids, labels


def _warm_up(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, config: TinyModel, task) -> None:
    """Train with AdamW (.9, .98), 20 steps of warm-up, linear decay over the last half, gradients clipped at 1."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.warmup_learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    steps = config.warmup_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20, 2 * (steps - step) / steps)
    )
    for step in range(steps):
        ids, labels = _encode(tokenizer, task.demonstrations(config.warmup_batch, seed=config.seed * 100_000 + step))
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _accuracy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, task, seed: int) -> float:
    """Return the mean reward of one response at temperature 1 to each of 256 prompts; of episodes, their success."""
    pool = task.data.all_prompts("train") if hasattr(task, "data") else task.prompts("train", 256, seed=seed)
    prompts = list(islice(cycle(pool), 256))  # a data set may have fewer
    longest = max(len(answer) for _, answer in task.demonstrations(256, seed)) + 1
    if getattr(task, "multi_turn", False):
        return asyncio.run(_success(model, tokenizer, task, prompts, longest))
    written = _sample(model, [np.array(tokenizer.encode(prompt.text)) for prompt in prompts], longest)
    responses = [Response(tokenizer.decode(row, skip_special_tokens=True), 1 in row) for row in written]
    return sum(score.reward for score in task.score(prompts, responses)) / len(prompts)


async def _success(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, task, starts: list[InitialState], longest: int
) -> float:
    async def generate(prompts: list[np.ndarray], _: list[int]) -> Completions:
        rows = _sample(model, prompts, longest)
        lengths = np.array([len(row) for row in rows])
        return Completions(np.concatenate(rows), np.empty(0, np.float32), lengths, np.array([1 in r for r in rows]), 0)

    def encode(text: str) -> np.ndarray:
        return np.array(tokenizer.encode(text))

    try:
        played = await play(
            task, starts, 1, generate, encode, partial(tokenizer.batch_decode, skip_special_tokens=True)
        )
    finally:
        task.close()
    return float(played.scores()["score"].mean())


@torch.no_grad()
def _sample(model: Qwen3ForCausalLM, prompts: list[np.ndarray], longest: int) -> list[np.ndarray]:
    """Sample one response at temperature 1 to each prompt, with its end."""
    width = max(map(len, prompts))
    ids = torch.tensor(np.stack([np.pad(prompt, (width - len(prompt), 0)) for prompt in prompts]), dtype=torch.long)
    written = model.eval().generate(
        input_ids=ids, attention_mask=(ids != 0).long(), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
        max_new_tokens=longest, pad_token_id=0,
    )[:, width:].numpy()  # fmt: skip
    return [row[row != 0] for row in written]
