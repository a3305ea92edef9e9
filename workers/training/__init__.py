"""The update of one run: micro batches, DeepSpeed, checkpoints of its state."""
