"""Selections, the frozen trunk, advantages and losses. Imports nothing of ours."""
