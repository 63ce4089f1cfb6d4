"""Speech recognition by prompting large language models with audio (arXiv 2307.11795)."""

import logging

__version__ = "0.1.0"

# On being imported, bitsandbytes asks a hub for kernels that it can do without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
