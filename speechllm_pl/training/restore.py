"""From a checkpoint of either stage to a module that transcribes."""

from pathlib import Path

import torch

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.storage.checkpoints import RECORD, read_checkpoint
from speechllm_pl.storage.digests import damaged
from speechllm_pl.storage.recorded import wrong_settings
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.recognizer import Recognizer


def restore(path: str | Path, *, llm: str | None = None, device: str | torch.device = "cpu") -> Recognizer:
    """The trained module, in evaluation mode; its `precision` is that of training.

    Args:
        path: checkpoint of either stage.
        llm: folder or name of the LLM, where it has moved since training.

    Raises:
        UserError: the checkpoint or its LLM is missing, damaged, edited or not what it was, or there is no such device.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint[RECORD]["settings"]
    stage = {"ctc": CtcPretraining, "llm": LlmFinetuning}[checkpoint[RECORD]["stage"]]
    if problem := wrong_settings(stage, ConformerConfig, settings, checkpoint["state_dict"]):
        raise UserError(damaged(Path(path), problem))
    if llm is not None:
        settings |= {"llm": llm, "llm_revision": None}
    try:
        module = stage.from_settings(settings)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from error
    module.configure_model()
    module.load_state_dict(checkpoint["state_dict"])
    module.precision = checkpoint[RECORD].get("precision", module.precision)
    try:
        return module.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, no driver, no memory
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device} cannot be used ({reason}): give another, such as cpu or cuda:0") from error
