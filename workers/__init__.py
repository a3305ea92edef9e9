"""The Ray actors of a sweep, and what they are made of.

- `actors`: engine, trainer, rollout worker, collector, base weights; their placement.
- `training`: the update of a run, and its state; DeepSpeed behind a protocol.
- `transport`: weights from trainer to engine.
- `storage`: atomic files, checkpoints (`run_store`), the columns of the tables.
- `startup`: base models, process environment, preloaded processes. `trackers`: dashboards.
- `config`: the spec's `training`, `deepspeed`, `resources` and `recovery` sections.
"""
