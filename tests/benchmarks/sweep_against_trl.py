"""A whole sweep against the same sweep as a loop over TRL's GRPOTrainer with all but one layer frozen.

Both sides have the same model, prompts in the same order, groups, response limit, optimizer steps, learning rates,
clipping and KL term, on the same two cores. Ours also evaluates base and every run, scores finalists, draws the report
and writes tables; TRL only trains. TRL gets its best settings: two processes at a time with one thread each, batches
as large as a minibatch, generation with a KV cache, float32, nothing logged, saved or evaluated. Two variants of it
are started: a process per run, as one writes it first, and two processes that go through half of the runs each and so
import once (for `larger` the second alone). Wall clock is from cold processes to the last one's end, and means little
on a machine that is busy otherwise. Steady state is the difference between sweeps of N and 2N steps, over N steps and
all runs, in CPU seconds of the processes started. Before the clock starts the tiny model is in the cache and the files
of both stacks have been read once.

    python -m tests.benchmarks.sweep_against_trl demo      # deploy/sweeps/demo.yaml
    python -m tests.benchmarks.sweep_against_trl larger    # 12 layers, hidden 256, KL, 2 epochs, 96 + 64 tokens
    python -m tests.benchmarks.sweep_against_trl smollm2         # SmolLM2-135M, layer 15 and full, 45 + 6 tokens
    python -m tests.benchmarks.sweep_against_trl smollm2-long    # the same with KL, 64 + 128 tokens
    python -m tests.benchmarks.sweep_against_trl larger results.json 1   # one sweep more, until the file has them all
"""

import json
import os
import random
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from layersweep.cli import DEMO
from layersweep.orchestrator.planning.checks import make_plan
from layersweep.orchestrator.planning.plan import Plan
from layersweep.orchestrator.spec.load import parse_spec
from layersweep.rollout.types import Prompt
from layersweep.workers.startup.model_source import resolve_source
from layersweep.workers.startup.tiny_model_training import character_tokenizer, make_tiny_model
from tests.benchmarks.common import Spent, median, print_table, random_model, spent, sweep

OURS = "layersweep"
STEPS = {"demo": 30, "larger": 6, "smollm2": 2, "smollm2-long": 1}
REPETITIONS = {"demo": 3, "larger": 2, "smollm2": 1, "smollm2-long": 1}
CORES = 2


def demo() -> tuple[dict[str, Any], str]:
    """The spec and the model's folder."""
    spec = yaml.safe_load(Path(DEMO).read_text()) | {"seeds": [0]}
    parsed = parse_spec(spec)
    return spec, make_tiny_model(parsed.model, parsed.task)


def larger() -> tuple[dict[str, Any], str]:
    """The same, of a random model without an end token: every response has all 64 tokens. Every second layer and all.

    No answer is right, but the KL term keeps every response in the computation.
    """
    tokenizer = character_tokenizer(string.ascii_lowercase + string.digits + " ?")
    tokenizer.eos_token = None
    folder = random_model(layers=12, hidden=256, heads=8, vocabulary=len(tokenizer), end=None)
    tokenizer.save_pretrained(folder)
    rng = random.Random(0)
    questions = ["".join(rng.choices(string.ascii_lowercase, k=95)) + "?" for _ in range(200)]
    data = Path(folder) / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": q, "answer": str(i)}) + "\n" for i, q in enumerate(questions)))
    spec = {
        "name": "larger",
        "model": folder,
        "task": {"type": "math", "data": {"path": str(data), "prompt_format": "plain"}},
        "algorithm": {"type": "grpo", "kl_coefficient": 0.001},
        "layers": "0:12:2",
        "training": {
            "prompts_per_step": 4, "group_size": 8, "epochs": 2, "max_response_tokens": 64, "learning_rate": 1e-3,
        },
        "rollout": {"max_model_len": 192, "kv_cache_memory_mib": 1024},
        "evaluation": {"suites": [{"name": "math", "prompts": 2, "samples": 1}]},
    }  # fmt: skip
    return spec, folder


def smollm2() -> tuple[dict[str, Any], str]:
    """The second demo's model and task without its stop string: both sides write six tokens and read the first line."""
    spec = yaml.safe_load((Path(DEMO).parent / "smollm2-arithmetic.yaml").read_text())
    spec["task"]["answer_before"] = "\n"
    spec["layers"] = [15]
    del spec["training"]["stop"]
    spec["evaluation"]["suites"][0] |= {"prompts": 2, "samples": 1}
    return spec, str(resolve_source(parse_spec(spec).model)[1])


def smollm2_long() -> tuple[dict[str, Any], str]:
    """Long responses of the same model without an end token. No answer is right; the KL term keeps every response."""
    spec, original = smollm2()
    folder = tempfile.mkdtemp(prefix="layersweep-benchmark-")
    shutil.copytree(original, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer.decode(range(1000, 9000)).split()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        file = Path(folder) / name
        if file.is_file():
            file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))
    rng = random.Random(0)
    texts = [tokenizer.decode(tokenizer(" ".join(rng.choices(words, k=90)))["input_ids"][:64]) for _ in range(40)]
    data = Path(folder) / "texts.jsonl"
    data.write_text("".join(json.dumps({"question": text, "answer": str(i)}) + "\n" for i, text in enumerate(texts)))
    spec |= {
        "name": "smollm2-long",
        "model": folder,
        "task": {"type": "math", "data": {"path": str(data), "prompt_format": "plain"}},
        "algorithm": {"type": "grpo", "kl_coefficient": 0.001},
        "evaluation": {"suites": [{"name": "math", "prompts": 2, "samples": 1}]},
    }
    spec["training"] |= {"prompts_per_step": 4, "max_response_tokens": 128}
    return spec, folder


def right_answer(prompt: Prompt) -> str:
    """The truth as TRL's reward compares it; of the arithmetic task, whose prompts end in `12 + 34 =`, the result."""
    if not prompt.text.endswith(" ="):
        return str(prompt.truth)
    first, sign, second = prompt.text.splitlines()[-1].split()[:3]
    return str(int(first) + int(second) if sign == "+" else int(first) - int(second))


def trl_settings(plan: Plan, folder: str) -> dict[str, Any]:
    """The same training for trl_run."""
    training, algorithm, task = plan.spec.training, plan.spec.algorithm, plan.spec.task.build()
    batches = [task.prompts("train", training.prompts_per_step, seed=step) for step in range(training.steps)]
    prompts = [prompt for batch in batches for prompt in batch]
    each = training.minibatches * training.epochs
    config = {
        "output_dir": f"{folder}/trl", "max_steps": training.steps * each,
        "per_device_train_batch_size": training.prompts_per_step * training.group_size // training.minibatches,
        "steps_per_generation": training.minibatches, "num_iterations": training.epochs,
        "gradient_accumulation_steps": 1, "num_generations": training.group_size, "shuffle_dataset": False,
        "max_completion_length": training.max_response_tokens, "temperature": training.temperature,
        "loss_type": "grpo", "scale_rewards": "group", "beta": algorithm.kl_coefficient,
        "epsilon": algorithm.clip_low, "epsilon_high": algorithm.clip_high,
        "learning_rate": training.learning_rate.model_dump(), "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": training.warmup_steps * each, "max_grad_norm": training.gradient_clip,
        "adam_beta1": training.betas[0], "adam_beta2": training.betas[1], "weight_decay": training.weight_decay,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_num_workers": 0,
        "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no", "report_to": "none",
        "disable_tqdm": True,
    }  # fmt: skip
    return {
        "model": folder, "config": config,
        "prompts": [prompt.text for prompt in prompts], "truths": [right_answer(prompt) for prompt in prompts],
        "first_line": plan.spec.task.type == "reasoning_gym",
    }  # fmt: skip


def trl_sweep(spec: dict[str, Any], folder: str, steps: int, process_per_run: bool) -> Spent:
    """The peer's whole sweep, two processes at a time."""
    plan = make_plan(parse_spec(spec | {"training": spec["training"] | {"steps": steps}}))
    names = [run.selection.name for run in plan.runs]
    jobs = [[name] for name in names] if process_per_run else [names[i::CORES] for i in range(CORES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as settings:
        json.dump(trl_settings(plan, folder), settings)
        settings.flush()

        def run(job: list[str]) -> None:
            command = [sys.executable, "-m", "tests.benchmarks.trl_run", settings.name, *job]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"TRL failed on {job}:\n{done.stderr}")

        def everything() -> None:
            with ThreadPoolExecutor(CORES) as pool:
                list(pool.map(run, jobs))

        return spent(everything)


def sides(setting: str) -> tuple[int, dict[str, Callable[[int], Spent]]]:
    """How many runs a sweep has, and what measures a sweep of so many steps on each side."""
    settings = {"demo": demo, "larger": larger, "smollm2": smollm2, "smollm2-long": smollm2_long}
    spec, folder = settings[setting]()
    ways: dict[str, Callable[[int], Spent]] = {
        OURS: partial(sweep, spec),
        "TRL, two processes": partial(trl_sweep, spec, folder, process_per_run=False),
    }
    if setting == "demo":
        ways["TRL, a process per run"] = partial(trl_sweep, spec, folder, process_per_run=True)
    return len(make_plan(parse_spec(spec)).runs), ways


def measure(setting: str, ways: dict[str, Callable[[int], Spent]], results: Path, pieces: int | None) -> dict[str, Any]:
    """Sweeps of N and 2N steps on every side, taking turns; what `results` has already is not measured again."""
    done: dict[str, list[float]] = json.loads(results.read_text()) if results.is_file() else {}
    for module in ("vllm", "trl", "deepspeed"):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
    wanted = [
        (f"{repetition}/{side}/{steps}", side, steps)
        for repetition in range(REPETITIONS[setting])
        for steps in (STEPS[setting], 2 * STEPS[setting])
        for side in ways
    ]
    for key, side, steps in [piece for piece in wanted if piece[0] not in done][:pieces]:
        cost = ways[side](steps)
        done[key] = [cost.wall, cost.cpu, cost.others]
        results.write_text(json.dumps(done, indent=1))
        print(
            f"{key}: wall {cost.wall:.1f} s, CPU {cost.cpu:.1f} s, {cost.others:.2f} cores busy otherwise", flush=True
        )
    return done


def main(setting: str, results: str | None = None, pieces: str | None = None) -> None:
    runs, ways = sides(setting)
    with tempfile.TemporaryDirectory() as folder:
        done = measure(setting, ways, Path(results or f"{folder}/results.json"), int(pieces) if pieces else None)
    once, twice = STEPS[setting], 2 * STEPS[setting]
    if len(done) < REPETITIONS[setting] * 2 * len(ways):
        return

    def of(side: str, steps: int, part: int) -> list[float]:
        return [done[f"{i}/{side}/{steps}"][part] for i in range(REPETITIONS[setting])]

    rows = []
    for side in ways:
        rate = [(b - a) / (once * runs) for a, b in zip(of(side, once, 1), of(side, twice, 1), strict=True)]
        figures = [median(x) for x in (of(side, once, 0), of(side, twice, 0), of(side, once, 1), rate)]
        rows.append([side, *figures, median([*of(side, once, 2), *of(side, twice, 2)])])
    ours = rows[0]
    print_table(
        f"Whole sweep, {setting}: {runs} runs, medians of {REPETITIONS[setting]}",
        ["side", f"wall s, {once} steps", "against ours", f"wall s, {twice} steps", "against ours",
         f"CPU s, {once} steps", "against ours", "CPU s per run and step", "against ours", "cores busy otherwise"],
        [[row[0], *(x for i in range(1, 5) for x in (row[i], row[i] / ours[i])), row[5]] for row in rows],
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
