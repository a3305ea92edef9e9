"""The model as a trainer runs it.

- `trunk`: the frozen base, and the policy over it; `pretrained` loads it, `block_inputs` are what its blocks are given.
- `tree_batch`, `tree_attention`: micro batches of prompts with their responses; `varlen_attention`, `varlen_check`:
  their attention on GPUs; `fused`, `fused_cpu`, `fused_gpu`, `token_logprobs`: their arithmetic.
- `tensor_transport`: weights as they travel between processes; `device_copy`: batches on their way to a GPU.
- `families`, `config_fields`, `architecture`, `checkpoint`, `expert_weights`, `known_models`: what is supported, shapes
  and files, without torch.
"""
