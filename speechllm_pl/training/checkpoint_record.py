"""Checks that a checkpoint has the stage, tokenizer, model and optimiser of the run."""

from pathlib import Path
from typing import Any

import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.own_vocabulary import restored
from speechllm_pl.storage.checkpoints import RECORD, STAGES
from speechllm_pl.storage.digests import damaged
from speechllm_pl.storage.recorded import ENCODER_DIGEST, present_settings, wrong_optimizer_state, wrong_progress
from speechllm_pl.training.resumption import by_dotted_name

OF_TRAINING = (
    *("encoder.dropout", "encoder.lr_factor", "spec_augment", "text_masking", "alignment_classes", "ctc_weight"),
    *("freeze_encoder", "freeze_bridge", "simulated_from", "simulated_wrong"),
)
OF_FILES = ("tokenizer", "llm", "llm_revision", "llm_digest", "encoder.name", "encoder.revision", ENCODER_DIGEST)
MAY_DIFFER = (*OF_FILES, *OF_TRAINING)


def refuse_other_stage(checkpoint: dict[str, Any], stage: str) -> None:
    """Raise a UserError unless the checkpoint is of `stage`."""
    found = checkpoint.get(RECORD, {}).get("stage")
    if found != stage:
        what = STAGES.get(found, "another project")
        raise UserError(f"the checkpoint is of {what}, but one of {STAGES[stage]} is needed here")


def check_tokenizer(tokenizer: CtcTokenizer, model: bytes) -> None:
    """Raise a UserError unless `tokenizer` is the `model` that a checkpoint was trained with."""
    if tokenizer.to_bytes() != model:
        ours, theirs = tokenizer.vocab_size - 1, restored(model).vocab_size - 1
        raise UserError(
            f"the tokenizer ({ours} pieces) is not the one that the checkpoint was trained with ({theirs} pieces):"
            " give the tokenizer of that run (--model.tokenizer), or train anew in another folder (RUN=)"
        )


def refuse_other_settings(ours: dict[str, Any], theirs: dict[str, Any], whose: str) -> None:
    """Compare two descriptions of a model.

    Raises:
        UserError: two settings differ; the message names the first. Settings of training alone and the LLM's path
            may differ, and the LLM and a pretrained encoder themselves are compared elsewhere.
    """
    found = dict(by_dotted_name(present_settings(theirs)))
    for key, value in by_dotted_name(ours):
        if not {key, key.split(".")[0]} & set(MAY_DIFFER) and value != found.get(key):
            raise UserError(
                f"{whose} has {key} {found.get(key)}, but this run {value}: give it the same, or train anew in another"
                " folder (RUN=)"
            )


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The optimiser's class and number of parameter groups, which must match its saved state."""
    return f"{type(optimizer).__name__} on {len(optimizer.param_groups)} groups"


def refuse_other_optimizer(checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Compare the optimiser of a checkpoint with that of the run.

    Args:
        checkpoint: checkpoint with a valid record.
        optimizer: optimiser of the run.
        path: path of the checkpoint.

    Raises:
        UserError: training cannot resume, as the checkpoint has no optimiser state or that of another optimiser.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            "the checkpoint holds weights alone, from which no run goes on: give a step=….ckpt of it (--ckpt_path)"
        )
    if problem := wrong_progress(checkpoint):
        raise UserError(damaged(path, problem))
    ours = optimizer_name(optimizer)
    theirs = checkpoint[RECORD].get("optimizer", "one of an earlier version")
    if ours != theirs:
        raise UserError(
            f"the checkpoint was trained with {theirs}, whose state means nothing to {ours}: resume with the"
            " former optimiser, or start anew in another folder (RUN=)"
        )
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (checkpoint["optimizer_states"][0]["param_groups"], optimizer.param_groups)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"other parts of the model are trained here ({sum(sizes[1])} tensors) than in the checkpoint"
            f" ({sum(sizes[0])}): give model.ctc_weight, freeze_encoder and train_llm as its run had them"
            " (config.yaml beside it), or start anew in another folder (RUN=)"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if problem := wrong_optimizer_state(checkpoint["optimizer_states"][0], parameters):
        raise UserError(damaged(path, problem))
