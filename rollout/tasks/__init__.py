"""Tasks: where prompts come from and what a response is worth. One module each; rollout/config.py lists them."""
