"""Everything that lives while a sweep runs: launch, driver, run control, actors, recovery."""
