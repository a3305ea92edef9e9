"""The Ray actors of a sweep: engine, rollout worker, trainers, collector; and what starts them fast."""
