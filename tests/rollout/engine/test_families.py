"""Every further family in the engine: runs and the base in one batch, each through its own weights."""

import copy

import numpy as np
import pytest
import torch

from layersweep.policies.selection import Selection
from layersweep.rollout.types import Sampling
from tests.helpers.engine_logprobs import trained, worst
from tests.helpers.families import FAMILIES, random_model

PART = {"Phi3": "qkv_proj", "Qwen3Moe": "q_proj|gate_up_proj"}
"""Part of a block that vLLM fuses with more, where it is not q_proj and up_proj."""


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_of_a_family_in_one_batch_equal_transformers(family, tmp_path):
    """A block, part of another, what is outside of blocks, all, and the base: within 1e-5 nats of transformers with the
    run's own weights, far from the base's; and the self-check, which also compares the trainer, agrees. Sequences are
    longer than the windows."""
    from vllm.distributed.parallel_state import destroy_model_parallel

    from layersweep.rollout.config import RolloutConfig
    from layersweep.rollout.engine.engine import RolloutEngine
    from layersweep.rollout.engine.selfcheck import check

    if family == "Qwen3Moe":  # vLLM makes a group for experts only where a process's first model has any
        destroy_model_parallel()
    base = random_model(family)
    base.save_pretrained(tmp_path)
    engine = RolloutEngine(str(tmp_path), f"{family}ForCausalLM", RolloutConfig(max_num_seqs=32), "float32", seed=0)
    part = Selection.part((2,), PART.get(family, "q_proj|up_proj"))
    selections = [Selection.layer(1), Selection.layer(0), part, Selection.part((), r"^model\.norm"), Selection.full()]
    models = {None: base}
    for i, selection in enumerate(selections):
        torch.manual_seed(i)
        model = models[selection.name] = copy.deepcopy(base)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if selection.trains(name):
                    parameter += (0.3 if selection.name.startswith("outside") else 0.05) * torch.randn_like(parameter)
        sent = engine.push(selection.name, 1, trained(model, selection)).result()
        assert sent.bytes == sum(4 * p.numel() for n, p in model.named_parameters() if selection.trains(n)) > 0
    random = np.random.default_rng(0)
    prompts = [random.integers(2, 32, n).astype(np.int32) for n in (3, 40, 40)]
    sampling = Sampling(samples=2, max_tokens=12, logprobs=True)
    futures = {run: engine.generate(run, int(run is not None), prompts, [5, 6, 7], sampling) for run in models}
    for run, future in futures.items():
        done = future.result(timeout=120)
        assert worst(models[run], prompts, done, 2) < 1e-5, run
        if run is not None:
            assert worst(base, prompts, done, 2) > 1e-2, run
        engine.drop(run) if run else None
    assert check(engine, str(tmp_path), "float32") < 1e-5
