"""The update of one run.

`update_loop` goes from a rollout batch to optimizer steps, over a `backend` (`deepspeed_backend`, over an `optimizer`);
`microbatch_cache` and `micro_batch_size` are its micro batches, `training_state` its checkpoints, `distributed` its
process group, `memory` the return of freed memory.
"""
