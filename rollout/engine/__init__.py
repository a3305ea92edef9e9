"""vLLM as the rollout engine of a whole sweep: many runs, one frozen trunk, one continuous batch."""
