"""The Ray actors of a sweep: engine, trainer, rollout worker, collector, a module each.

`base_weights` is the actor that trainers of a shared GPU load from, `gpu_share` the arithmetic of such a GPU,
`ray_placement` node affinity and placement groups, `engine_metrics` what an engine exports to Prometheus,
`portable_errors` makes errors survive Ray.
"""
