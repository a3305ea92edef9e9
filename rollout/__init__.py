"""Where experience comes from: the vLLM engine, tasks, rewards and the code sandbox."""
