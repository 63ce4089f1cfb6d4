"""Floor under apps: command lines, their order and their place. It starts programs and imports none."""
