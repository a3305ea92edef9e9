"""What is shipped beside the code: sweeps, lock files, manifests."""
