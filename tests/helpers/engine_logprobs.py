"""The engine's log-probabilities against those of transformers' own model."""

import numpy as np
import torch


def trained(model, selection):
    """What a trainer of this selection sends."""
    return {n: p.detach() for n, p in model.named_parameters() if selection.trains(n)}


@torch.no_grad()
def logprobs(model, prompt, answer):
    ids = torch.from_numpy(np.concatenate([prompt, answer])).long()[None]
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1)[range(len(answer)), torch.from_numpy(answer).long()].numpy()


def worst(model, prompts, completions, samples):
    """Largest difference in nats between the engine's log-probabilities and this model's."""
    starts = np.cumsum(completions.lengths)[:-1]
    answers, given = np.split(completions.tokens, starts), np.split(completions.logprobs, starts)
    return max(
        np.abs(logprobs(model, prompts[i // samples], answer) - given[i]).max() for i, answer in enumerate(answers)
    )
