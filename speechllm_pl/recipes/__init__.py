"""Floor under apps: what to run, in which order and where, as command lines. It starts programs and imports none."""
