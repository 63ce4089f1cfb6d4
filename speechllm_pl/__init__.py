"""Speech recognition by prompting large language models with audio (arXiv 2307.11795)."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechllm_pl.apps.asr import load as load

__version__ = "0.1.0"

# On being imported, bitsandbytes asks a hub for kernels that it can do without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """Import `load`, and torch with it, when it is asked for."""
    if name == "load":
        from speechllm_pl.apps.asr import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
