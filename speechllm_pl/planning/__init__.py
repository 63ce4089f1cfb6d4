"""Memory and computation of a training step, and whether it fits, estimated without a GPU."""
