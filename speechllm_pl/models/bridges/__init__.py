"""Bridges from encoder frames to embeddings that an LLM reads, by the interface of `bridges/protocol.py`.

`model.bridge` of a configuration names one of the descriptions below; a new one is added here.
"""

from speechllm_pl.models.bridges.projector import ProjectorConfig

__all__ = ["ProjectorConfig"]
