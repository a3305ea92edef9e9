"""What a sweep will do, checked and computed before anything starts: runs, placement, memory, hours. No Ray."""
