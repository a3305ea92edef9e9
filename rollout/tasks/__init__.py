"""Tasks: where prompts come from and what a response is worth. One module each."""

from .base import Prompt, Response, Score, Split, Task
from .sort_digits import SortDigitsConfig

TaskConfig = SortDigitsConfig

__all__ = ["Prompt", "Response", "Score", "Split", "Task", "TaskConfig"]
