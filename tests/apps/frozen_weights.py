"""A callback for runs in processes of their own: digests of what must not change and of what must be alike."""

import hashlib
import json
from pathlib import Path

import lightning as L
import torch


def digest(state: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(state):
        total.update(name.encode() + state[name].detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class FrozenWeights(L.Callback):
    """Writes `weights-<rank>.json` into a folder at the end of training.

    Args:
        folder: to write into.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.before = self.frozen(module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        kinds = sorted({str(value.dtype) for value in self.state(module).values()})
        record = {"before": self.before, "after": self.frozen(module), "trained": digest(trained), "kinds": kinds}
        (self.folder / f"weights-{trainer.global_rank}.json").write_text(json.dumps(record))

    def frozen(self, module: L.LightningModule) -> str:
        return digest(self.state(module))

    def state(self, module: L.LightningModule) -> dict[str, torch.Tensor]:
        """The LLM's weights, quantised as they are, with their scales."""
        return {name: v for name, v in module.state_dict().items() if "model.llm." in name and "lora_" not in name}
