"""What libraries say is passed on where a user can act on it."""

import logging
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from speechllm_pl.apps import main

IDLE = (
    "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger]",
    "💡 Tip: For seamless cloud uploads and versioning, try installing [litmodels]",
    "TPU available: False, using: 0 TPU cores",
    "`Trainer(val_check_interval=1.0)` was configured so validation will run at the end of the training epoch..",
    "Loading `train_dataloader` to estimate number of stepping batches.",
    "Restoring states from the checkpoint path at runs/x/checkpoints/step=00000006.ckpt",
)
"""Of Lightning."""
ABOUT_RANKS = {
    "lightning.fabric.utilities.seed": ("[rank: 1] Seed set to 1", "[rank: 12] Seed set to 1"),
    "lightning.fabric.utilities.distributed": ("Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/1",),
    "lightning.pytorch.utilities.rank_zero": (
        "-\ndistributed_backend=gloo\nAll distributed processes registered. Starting with 1 processes\n-\n",
    ),
}
"""By logger: what each rank says, or a single one."""
RANKS = {
    "lightning.fabric.utilities.seed": "Seed set to 1",
    "lightning.fabric.utilities.distributed": "Initializing distributed: GLOBAL_RANK: 0, MEMBER: 1/16",
    "lightning.pytorch.utilities.rank_zero": "All distributed processes registered. Starting with 16 processes",
}
NEWS = ("GPU available: True (cuda), used: False", "`Trainer.fit` stopped: `max_epochs=6` reached.")


def test_advice_that_helps_nobody_is_left_out_and_nothing_else(
    speechllm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    library = logging.getLogger("bitsandbytes.cextension")

    def run(_: list[str]) -> None:
        for message in IDLE + NEWS:
            rank_zero_info(message)
        kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community")
        kernels.error("this kernel is broken")
        library.warning("the installed bitsandbytes was compiled without GPU support")
        rank_zero_warn("Found 3 module(s) in eval mode at the start of training.")
        rank_zero_warn("You're resuming from a checkpoint that ended mid-epoch and your dataloader is not resumable.")
        rank_zero_warn("The number of training batches (3) is smaller than the logging interval Trainer(…=10).")
        rank_zero_warn("GPU available but not used.")
        warnings.warn("the disk is nearly full", stacklevel=1)

    monkeypatch.setattr(main, "run_command", run)
    caplog.set_level("INFO")
    with warnings.catch_warnings(record=True) as warned:
        assert speechllm("fit").status == 0
    assert [record.message for record in caplog.records] == [
        *NEWS,
        "this kernel is broken",
        "the installed bitsandbytes was compiled without GPU support",
    ]
    assert [str(each.message) for each in warned] == ["GPU available but not used.", "the disk is nearly full"]


def test_what_holds_for_all_ranks_is_said_once(
    speechllm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(_: list[str]) -> None:
        for name, messages in ABOUT_RANKS.items():
            for message in (*messages, RANKS[name]):
                logging.getLogger(name).info(message)

    monkeypatch.setattr(main, "run_command", run)
    caplog.set_level("INFO")
    assert speechllm("fit").status == 0
    assert [record.message for record in caplog.records] == list(RANKS.values())
