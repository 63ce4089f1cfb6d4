"""Prepared data looked at as a whole: figures, overlaps, and utterances with which something is wrong."""
