"""The update of one run: micro batches, DeepSpeed, checkpoints of the learner's state."""
