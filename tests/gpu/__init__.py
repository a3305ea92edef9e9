"""Checks that only a GPU can make; `python -m tests.gpu`, see docs/gpu-check.md."""
