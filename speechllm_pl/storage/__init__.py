"""Files: checkpoints, shards, weights and indices, written whole or not at all, and checks of audio files."""
