"""The sweep as a whole, a package for each subject, from the bottom up:

- `spec`: the YAML file, read, checked and refused with field, reason and fix.
- `statistics`: contribution, intervals, rankings, the search's schedule, from scores alone.
- `planning`: runs, checks, GPU and CPU allocation, memory, hours, before anything starts.
- `report`: HTML, charts, PNG, the terminal's table.
- `remote`: a cluster seen from a laptop: Ray jobs, the package of a job.
- `execution`: everything that lives while a sweep runs.
- `commands`: what the subcommands print.
- `api`: `import layersweep`, and the command line.
"""
