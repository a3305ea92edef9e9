"""A whole sweep against the same sweep as a loop over TRL's GRPOTrainer with all but one layer frozen.

Both sides have the same model, prompts in the same order, groups, response limit, optimizer steps, learning rates,
clipping and KL term, on the same two cores. Ours also evaluates base and every run, scores finalists, draws the report
and writes tables; TRL only trains. TRL gets its best settings: two processes at a time with one thread each, batches
as large as a minibatch, generation with a KV cache, float32, nothing logged, saved or evaluated. Two variants of it
are started: a process per run, as one writes it first, and two processes that go through half of the runs each and so
import once. Wall clock is from cold processes to the last one's end. Steady state is the difference between sweeps of
N and 2N steps, over N steps and all runs, in CPU seconds of the whole machine, which must be idle otherwise. Before
the clock starts the tiny model is in the cache and the files of both stacks have been read once.

    python -m tests.benchmarks.sweep_against_trl demo      # deploy/sweeps/demo.yaml
    python -m tests.benchmarks.sweep_against_trl larger    # 12 layers, hidden 256, KL, 2 epochs, 96 + 64 tokens
"""

import json
import os
import random
import string
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cli import DEMO
from orchestrator.plan import Plan, make_plan
from orchestrator.spec import parse_spec
from tests.benchmarks.common import Spent, median, print_background, print_table, random_model, spent, sweep
from workers.base_model import character_tokenizer, make_tiny_model

STEPS = {"demo": 30, "larger": 3}
REPETITIONS = {"demo": 3, "larger": 1}
CORES = 2


def demo() -> tuple[dict[str, Any], str]:
    """The spec and the model's folder."""
    spec = yaml.safe_load(Path(DEMO).read_text())
    parsed = parse_spec(spec)
    return spec, make_tiny_model(parsed.model, parsed.task)


def larger() -> tuple[dict[str, Any], str]:
    """The same, of a random model without an end token: every response has all 64 tokens.

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
        "training": {
            "prompts_per_step": 4, "group_size": 8, "epochs": 2, "max_response_tokens": 64, "learning_rate": 1e-3,
        },
        "rollout": {"max_model_len": 192},
        "evaluation": {"suites": [{"name": "math", "prompts": 2, "samples": 1}]},
    }  # fmt: skip
    return spec, folder


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
        "prompts": [prompt.text for prompt in prompts], "truths": [str(prompt.truth) for prompt in prompts],
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


def main(setting: str) -> None:
    spec, folder = {"demo": demo, "larger": larger}[setting]()
    steps = STEPS[setting]
    for module in ("vllm", "trl", "deepspeed"):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
    print_background()
    sides = {
        "layersweep": partial(sweep, spec),
        "TRL, two processes": partial(trl_sweep, spec, folder, process_per_run=False),
        "TRL, a process per run": partial(trl_sweep, spec, folder, process_per_run=True),
    }
    cold: dict[str, list[Spent]] = {side: [] for side in sides}
    steady: dict[str, list[float]] = {side: [] for side in sides}
    runs = len(make_plan(parse_spec(spec)).runs)
    for _ in range(REPETITIONS[setting]):
        for side, of_steps in sides.items():
            once, twice = of_steps(steps), of_steps(2 * steps)
            cold[side].append(once)
            steady[side].append((twice.cpu - once.cpu) / (steps * runs))
    wall = {side: median([spent.wall for spent in of]) for side, of in cold.items()}
    cpu = {side: median([spent.cpu for spent in of]) for side, of in cold.items()}
    rate = {side: median(of) for side, of in steady.items()}
    print_table(
        f"Whole sweep, {setting}: {runs} runs of {steps} steps, medians of {REPETITIONS[setting]}",
        ["side", "wall s", "against ours", "CPU s", "against ours", "CPU s per run and step", "against ours"],
        [
            [side, wall[side], wall[side] / wall["layersweep"], cpu[side], cpu[side] / cpu["layersweep"],
             rate[side], rate[side] / rate["layersweep"]]
            for side in sides
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
