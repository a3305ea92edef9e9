"""Prompts from files: rows, readers, splits, decontamination."""
