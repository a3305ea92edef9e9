"""The torch optimizer that DeepSpeed steps: AdamW, in 32 or 8 bits, or Muon for matrices with AdamW for the rest."""

from typing import Any

from torch import nn
from torch.optim import Muon, Optimizer

from layersweep.policies.model.trunk import Policy
from layersweep.workers.config import TrainingConfig


def make_optimizer(policy: Policy, training: TrainingConfig) -> Optimizer:
    """Make the optimizer over a policy's parameters, at a learning rate of 0 (`TrainerBackend.step` brings the rate).

    Each of its parameter groups has a `factor`, by which the learning rate is multiplied: 2 for boosted layers.
    """
    groups = _parameter_groups(policy, training)
    adamw = [group for group, by_muon in groups if not by_muon]
    muon = [group for group, by_muon in groups if by_muon]
    parts: list[Optimizer] = []
    if adamw:
        if training.optimizer == "adamw_8bit":
            from bitsandbytes.optim import AdamW8bit as AdamW
        else:
            from torch.optim import AdamW
        parts.append(AdamW(adamw, lr=0.0, betas=training.betas, weight_decay=training.weight_decay))
    if muon:
        # Updates as large as AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", arXiv 2502.16982), so that
        # both parts, and sweeps with either optimizer, can share a learning rate.
        parts.append(Muon(muon, lr=0.0, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return parts[0] if len(parts) == 1 else OptimizerPair(parts)


class OptimizerPair(Optimizer):
    """Optimizers over different parameters as one.

    They share parameter groups and state: whoever replaces a group's parameters by master weights, sets its learning
    rate, or saves and restores state, as DeepSpeed and checkpoints do, does it for both.
    """

    def __init__(self, parts: list[Optimizer]):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:
        for part in self.parts:
            part.step()


def _is_hidden_matrix(name: str, weight: nn.Parameter) -> bool:
    """Tell whether Muon is meant for a parameter: a matrix between hidden vectors, no embedding and no LM head."""
    return weight.ndim == 2 and ".layers." in name


def _parameter_groups(policy: Policy, training: TrainingConfig) -> list[tuple[dict[str, Any], bool]]:
    """Return groups of parameters that are treated alike, and which of them are Muon's."""
    boosted = policy.selection.names if policy.selection.kind == "boost" else lambda _: False
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, weight in policy.named_weights().items():
        decays = training.decay_norms_and_biases or weight.ndim > 1
        by_muon = training.optimizer == "muon" and _is_hidden_matrix(name, weight)
        groups.setdefault((boosted(name), by_muon, decays), []).append(weight)
    found = []
    for (boost, by_muon, decays), weights in sorted(groups.items(), key=lambda item: item[0]):
        found.append(({"params": weights, "factor": 1 + boost} | ({} if decays else {"weight_decay": 0.0}), by_muon))
    return found
