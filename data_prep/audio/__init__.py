"""Recordings: read, measured, checked, made and written."""
