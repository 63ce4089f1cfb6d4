"""Beside analysis: what a training step needs and whether it fits, found without a GPU."""
