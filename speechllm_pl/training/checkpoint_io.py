"""Lightning plug-in that writes and reads checkpoints with `storage`."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoints import Save, read_checkpoint, save_at_once, write_file
from speechllm_pl.storage.digests import damaged
from speechllm_pl.storage.recorded import is_of_a_version


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: a full disk or a kill leaves the previous checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Save | None = None) -> None:
        """Write a checkpoint at once, unless `storage_options` says otherwise."""
        save = storage_options or save_at_once
        save(checkpoint, Path(path), write_file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint on the CPU, without running pickled code, whatever the arguments."""
        checkpoint = read_checkpoint(path, optimizer=True)
        if not is_of_a_version(checkpoint):
            raise UserError(damaged(Path(path), "it is of no version of Lightning"))
        return checkpoint
