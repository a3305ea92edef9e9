"""The Ray actors of a sweep: engine, trainer, rollout worker, collector, and GPUs that several trainers share."""
