"""Tasks: where prompts come from and what a response is worth. One module each; rollout.config lists them."""

from .base import Prompt, Response, Score, Split, Task

__all__ = ["Prompt", "Response", "Score", "Split", "Task"]
