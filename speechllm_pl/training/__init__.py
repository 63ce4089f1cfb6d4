"""Training with Lightning: the stages, their placement on devices, checkpoints of runs, and callbacks."""
