"""Memory of many layer trainers on a 200M-parameter model, against that many separate processes.

Trainers are the sweep's own Ray actors, forked from the preloaded process; each has made an update. A separate process
is a plain script: load the model, freeze all but a layer, train it with torch. Both are measured as proportional set
size (Pss), where a page that n processes share counts 1/n in each: the sum is what they take of the machine. Trainers
include the preloaded server and the clients that stand for them in Ray; Ray's own processes come besides. Imports are
what an actor adds before it loads anything. Trunk is the Pss of the mapped weights file, summed: once its size when
all share it. Plain processes share it as well, for as long as they load it in the dtype that it has on disk and write
into their own layer alone.

    python -m tests.benchmarks.memory
"""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from layersweep.orchestrator.execution.ray_session import connected
from layersweep.policies.model.architecture import Architecture
from tests.benchmarks.common import print_table, random_model, synthetic_experience

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 16, 1024, 2432, 32000
COUNTS = (4, 8, 16)
MIB = 1 << 20


def experience() -> Any:
    return synthetic_experience(prompts=2, group=4, prompt_tokens=16, response_tokens=16, vocabulary=VOCABULARY)


def pss(processes: list[psutil.Process], mapped: str | None = None) -> float:
    """MiB, of everything or of the mappings of one file."""
    total = 0
    for process in processes:
        maps = Path(f"/proc/{process.pid}") / ("smaps" if mapped else "smaps_rollup")
        inside = mapped is None
        for line in maps.read_text().splitlines():
            if mapped and "-" in line.split(" ", 1)[0]:  # the header of a mapping: its addresses ... its file
                inside = line.endswith(mapped)
            elif inside and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total / MIB


def of_trainers() -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The trainers with their server and clients, and Ray's other processes."""
    mine, others = [], []
    for process in psutil.Process().children(recursive=True):
        command = " ".join(process.cmdline())
        (mine if "preload" in command or "ray::Trainer" in command else others).append(process)
    return mine, others


def trainers(folder: str) -> Iterator[tuple[float, float, float, float]]:
    """By count: Pss of the trainers, of the trunk in them, of Ray's processes, and what a new one's imports add."""
    with connected(None, "layersweep-memory", gpu=False) as environment:
        import ray

        from layersweep.policies.algorithms.grpo import GRPO
        from layersweep.policies.selection import Selection
        from layersweep.workers.actors.engine import Engine
        from layersweep.workers.actors.trainer import Trainer
        from layersweep.workers.config import DeepSpeedConfig, TrainingConfig
        from layersweep.workers.startup.model_source import ModelSource
        from layersweep.workers.training.setup import TrainingSetup

        # As in a sweep, an engine is forked first and trainers from a process that then imports their part too.
        engine = ray.remote(Engine).options(num_cpus=0.05, runtime_env=environment).remote()
        ray.get(engine.__ray_ready__.remote())
        ray.kill(engine)
        setup = TrainingSetup(GRPO(), TrainingConfig(max_response_tokens=16), DeepSpeedConfig(), "float32")
        batch, actors, before = ray.put(experience()), [], 0.0
        for count in COUNTS:
            new = [
                ray.remote(Trainer).options(num_cpus=0.05, runtime_env=environment).remote(Selection.layer(k), 0)
                for k in range(len(actors), count)
            ]
            addresses = ray.get([actor.address.remote() for actor in new])
            imports = (pss(of_trainers()[0]) - before) / len(new)
            ray.get(
                [
                    actor.start.remote(ModelSource(folder), address, setup, "cpu", "auto")
                    for actor, address in zip(new, addresses, strict=True)
                ]
            )
            ray.get([actor.update.options(num_returns=2).remote(batch, 0)[0] for actor in new])
            actors += new
            mine, others = of_trainers()
            before = pss(mine)
            yield before, pss(mine, "model.safetensors"), pss(others), imports


def alone(folder: str, layer: int, ready: Any, end: Any) -> None:
    """A separate process: what a script for one run does."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    trained = list(model.model.layers[layer].requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    batch = experience()
    ids = torch.from_numpy(batch.tokens).long().view(len(batch.lengths), -1)
    logits = model(torch.cat([torch.from_numpy(np.stack(batch.prompts)).long(), ids], dim=1)).logits[
        :, -ids.shape[1] - 1 : -1
    ]
    logp = torch.log_softmax(logits, -1).gather(-1, ids[..., None])
    (-logp.mean()).backward()
    optimizer.step()
    del logits, logp
    ready.release()
    end.wait()


def separate(folder: str) -> Iterator[tuple[float, float]]:
    """After each of COUNTS: Pss of the processes, of the mapped weights in them."""
    context = multiprocessing.get_context("spawn")
    ready, end, started = context.Semaphore(0), context.Event(), []
    for count in COUNTS:
        new = [context.Process(target=alone, args=(folder, layer, ready, end)) for layer in range(len(started), count)]
        for process in new:
            process.start()
        for _ in new:
            ready.acquire()
        started += new
        processes = [psutil.Process(process.pid) for process in started]
        yield pss(processes), pss(processes, "model.safetensors")
    end.set()
    for process in started:
        process.join()


def increments(totals: list[float]) -> list[float]:
    """MiB per further process, from each count to the next; none for the first."""
    steps = zip(COUNTS, COUNTS[1:], totals, totals[1:], strict=False)
    return [float("nan"), *((b - a) / (n - m) for m, n, a, b in steps)]


def main() -> None:
    folder = random_model(LAYERS, HIDDEN, 16, VOCABULARY, INTERMEDIATE)
    architecture = Architecture.from_folder(Path(folder))
    layer, whole = (4 * count / MIB for count in (architecture.layer_parameters, architecture.parameters))
    ours, theirs = list(trainers(folder)), list(separate(folder))
    further, apart = increments([total for total, *_ in ours]), increments([total for total, _ in theirs])
    print_table(
        f"Layer trainers, MiB (Pss); the model has {whole:.0f}, one layer {layer:.1f}",
        ["trainers", "in all", "of which trunk", "Ray besides", "per further trainer", "of which imports",
         "the rest in layers"],
        [
            [count, total, trunk, ray, more, imports, (more - imports) / layer]
            for count, (total, trunk, ray, imports), more in zip(COUNTS, ours, further, strict=True)
        ],
    )  # fmt: skip
    print_table(
        "Separate processes, MiB (Pss)",
        ["processes", "in all", "of which mapped weights", "per further process", "in all against trainers"],
        [
            [count, total, mapped, more, total / ours[0]]
            for count, (total, mapped), more, ours in zip(COUNTS, theirs, apart, ours, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
