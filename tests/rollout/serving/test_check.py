"""The check at a server's start takes transformers' own log-probabilities, and refuses those of other weights."""

import numpy as np
import pytest
import torch

from layersweep.rollout.engine.plain_forward import PlainForward, ReplacedWeights, ScoredResponse
from layersweep.rollout.engine.selfcheck import RoutingMismatch, check_served


@torch.no_grad()
def logprobs(model, prompt, answer):
    logits = model(torch.from_numpy(np.concatenate([prompt, answer])).long()[None]).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(answer)), torch.from_numpy(answer).long()]


def test_a_model_served_by_other_weights_is_refused(model_folder):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base, model = (AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32) for _ in range(2))
    name = "model.layers.2.mlp.up_proj.weight"
    with torch.no_grad():
        dict(model.named_parameters())[name].mul_(1.05)
    plain = PlainForward(model_folder, "float32")
    weights = {None: {}, "layer-02": {name: dict(model.named_parameters())[name]}}
    random = np.random.default_rng(0)
    prompt, answer = random.integers(2, 32, 20), random.integers(2, 32, 8)
    responses = {
        run: [ScoredResponse(ReplacedWeights(plain.weights, own), prompt, answer)] for run, own in weights.items()
    }
    served = {None: logprobs(base, prompt, answer), "layer-02": logprobs(model, prompt, answer)}
    assert check_served(plain, "float32", responses, served) < 1e-5
    with pytest.raises(RoutingMismatch, match="the engine's layer-02: log-probabilities differ"):
        check_served(plain, "float32", responses, {run: served[None] for run in served})
