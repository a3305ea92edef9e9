"""Files that are shipped beside the code: sweeps, lock files, manifests."""
