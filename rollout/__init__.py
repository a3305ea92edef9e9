"""Sources of experience: the vLLM engine, tasks, rewards and the code sandbox."""
