"""Environments for episodes of several turns: one module each, and the processes that they live in."""
