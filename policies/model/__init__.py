"""The model as a trainer runs it: the frozen trunk, micro batches of prompt trees, fused CPU operations."""
