"""The spec of a sweep: one YAML file, read into typed models, refused with field, reason and fix."""
