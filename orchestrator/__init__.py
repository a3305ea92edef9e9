"""What the user touches: CLI, spec, plan, driver, contribution, report."""
