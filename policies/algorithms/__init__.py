"""One module per algorithm: how rewards become advantages, and the loss."""
