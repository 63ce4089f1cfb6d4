"""Speech recognition by prompting large language models with audio (arXiv 2307.11795)."""

__version__ = "0.1.0"
