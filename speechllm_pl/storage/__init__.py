"""Second floor: how checkpoints, shards, indices and weights are written and read, whole or not at all."""
