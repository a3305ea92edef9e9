"""Environments for episodes of several turns: one module each over `base`, the episodes (`episodes`), and the processes
that run them (`process_pool`, `process_main`)."""
