"""Selections, the frozen trunk, advantages and losses. Imports nothing of ours.

- `selection`: the set of parameters that a run trains, and the names of runs.
- `algorithms`: GRPO and others, a module each, and the loss.
- `model`: the trunk, attention and batches as a trainer runs them; architectures and checkpoints without torch.
- `config`: the spec's `model` and `algorithm` sections; `strict`: the base of all configuration models.
"""
