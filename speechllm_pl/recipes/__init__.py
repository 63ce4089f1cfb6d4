"""Command lines, their order and their place. It starts programs and imports none, so it plans runs without torch."""
