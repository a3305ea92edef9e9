"""Everything that a user touches: CLI, spec, plan, driver, contribution, report."""
