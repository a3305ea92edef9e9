"""Plan of a sweep, checked and computed before anything starts. No Ray.

- `plan`: runs, sizes, counts; `checks` makes it from a spec, `model_architecture` and `model_checks` look at the model.
- `placement`: can a cluster ever place the actors? by `gpu_allocation` and `cpu_allocation`.
- `cluster_forecast`: hours, memory and traffic on a `cluster_shape`, by `cost_model` and `gpu_memory`; `split_search`
  looks for a division of the GPUs with fewer hours.
- `combined_runs`: layers picked for the runs over several layers.
"""
