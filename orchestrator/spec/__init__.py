"""The spec of a sweep: one YAML file, read into typed models, refused with field, reason and fix.

- `sweep_spec`: all sections together; the sections' fields are in the `config` modules of `policies`, `rollout` and
  `workers`, those of `layers` and `combine` in `layers`.
- `load`, `yaml_core`, `overrides`, `paths`, `folders`: from text to a spec.
- `errors`, `explain`: SpecError, and what it says. `schema_docs`: `layersweep schema`.
"""
