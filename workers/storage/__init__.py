"""Files: atomic writes on any fsspec filesystem, and the checkpoint directory of a run."""
