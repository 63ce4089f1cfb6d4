"""Waveforms in, text out: recognisers, searches, and transcripts of recordings. Knows no trainer."""
