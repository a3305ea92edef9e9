"""Sources of experience.

- `engine`: vLLM serving every run of a sweep, and its self-check.
- `tasks`, `environments`: prompts and rewards, for one turn and for several; `sandbox` runs programs of
  models.
- `dynamic_sampling`: prompts without signal replaced by further ones.
- `data`: prompts from files or a hub, splits, decontamination; `prompt_encoder`: their tokens.
- `types`: what travels between engine, rollout worker and trainer. `config`: the spec's `task`, `rollout` and
  `evaluation` sections.
- `subprocess_pool`, `child_process`: worker processes with limits.
"""
