"""The model as a trainer runs it.

- `trunk`: the frozen base, and the policy over it; `pretrained` loads it.
- `tree_batch`, `tree_attention`: micro batches of prompts with their responses; `fused_cpu`, `token_logprobs`: their
  arithmetic.
- `tensor_transport`: weights as they travel between processes.
- `architecture`, `checkpoint`, `known_models`: shapes and files, without torch.
"""
