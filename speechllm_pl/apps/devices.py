"""Names of devices. Lightning, which takes seconds to import, is not needed for them."""

import torch


def device_of(name: str) -> str:
    """Name of a device, where `auto` is a GPU if available, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
