"""Plan of a sweep, checked and computed before anything starts: runs, placement, memory, hours. No Ray."""
