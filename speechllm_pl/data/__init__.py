"""From Lhotse cuts to batches."""
