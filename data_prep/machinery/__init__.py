"""What any program needs that works long: processes, pieces that are finished once, a command line."""
