"""Preparation before actors work.

`model_source` is the base model as actors load it, from a folder, a hub, a GGUF file (`gguf_model`) or the demo's
recipe (`tiny_model`, `tiny_model_training`), cached by `model_cache`; `environment` has the processes' variables,
`preload` forks actors from one process that has imported everything.
"""
