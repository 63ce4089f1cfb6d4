"""Lhotse Shar: the cuts of a manifest packed into shards, with their audio. Run as `python -m data_prep.shar`."""
