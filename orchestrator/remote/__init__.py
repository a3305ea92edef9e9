"""Sweeps on a cluster, as a laptop sees them.

`ray_jobs` submits, finds, follows and stops them, `job_package` packs what a job needs, `sweep_view` reads a sweep's
files from wherever they are, `ray_token` is Ray's authentication.
"""
