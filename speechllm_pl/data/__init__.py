"""Second floor: Lhotse cuts in, batches out."""
