"""Bridges from encoder frames to embeddings that an LLM reads."""
