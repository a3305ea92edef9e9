"""What is trained, and how: selections, the frozen trunk, advantages and losses. Imports nothing of ours."""
