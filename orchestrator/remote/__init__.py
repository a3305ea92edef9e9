"""A cluster seen from a laptop: Ray jobs, what a job takes along, a sweep seen from outside."""
