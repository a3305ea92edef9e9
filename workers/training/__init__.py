"""The update of one run, which `setup` makes from the spec's sections.

`update_loop` goes from a rollout batch to optimizer steps, over a `backend` (`deepspeed_backend`, over an `optimizer`);
`rollout_batch` has the batch's advantages and micro batches (`microbatch_cache`, `micro_batch_size`), `half_gradients`
the agreement of its halves, `update_metrics` what was measured; `training_state` is its checkpoints, `distributed` its
process group, `memory` the return of freed memory.
"""
