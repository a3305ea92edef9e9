"""vLLM as the rollout engine of a whole sweep: many runs, one frozen trunk, one continuous batch.

`engine` is what others call, each time with a `request`; `model`, `row_routing` and `overlay` send each row through its
own run's weights, as `weight_slots` and `slot_modules` do under CUDA graphs, `model_state` and `worker` are vLLM's
hooks for that, `batching` chooses mixed or swap, `selfcheck` compares with a `plain_forward`, which rounds as an
`fp8_cache` does where there is one.
"""
