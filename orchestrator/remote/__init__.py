"""Sweeps on a cluster, as a laptop sees them: Ray jobs, the package of a job, views of a sweep."""
