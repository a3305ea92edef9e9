"""Environments for episodes of several turns: one module each, and the processes that run them."""
