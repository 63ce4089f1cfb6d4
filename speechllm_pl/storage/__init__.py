"""Reading and writing of checkpoints, shards, weights and indices, each whole or not at all."""
