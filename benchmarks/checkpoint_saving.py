"""How long training is held up by a checkpoint of the paper's encoder and Adam, and what a run keeps on the disk.

    python benchmarks/checkpoint_saving.py --folder FOLDER

Trains with a loss that costs nothing, on the CPU, validating after every second step. Of the saves every other pair is
waited for, as if it were not written in the background. Prints the seconds from the call to where training goes on, and
the files that are left.
"""

import argparse
import io
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from machine import describe
from sentencepiece import SentencePieceTrainer
from torch import Tensor
from torch.utils.data import DataLoader

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.interruption import LastCheckpoints

STEPS = 24


class Weightless(CtcPretraining):
    """Stage 1 without speech: its weights shrink, and it is the better for it."""

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return torch.stack([p.square().sum() for p in self.parameters()]).sum()

    def validation_step(self, batch: Any, batch_index: int) -> Any:
        self.log("val/wer", 1 / self.global_step)

    def nothing(self, *_: Any, **__: Any) -> None:
        """Callback in the place of those that need utterances."""

    on_fit_start = on_before_optimizer_step = configure_gradient_clipping = on_validation_epoch_end = nothing


class Timed(LastCheckpoints):
    """Notes how long each save held training up; waits for two of four."""

    def __init__(self) -> None:
        super().__init__(every_n_steps=1)
        self.seconds: dict[str, list[float]] = {"in the background": [], "waited for": []}

    def save(self, trainer: L.Trainer, wer: float | None = None, *, state: bool = True) -> None:
        self.module.writer.wait()  # for the former one, which 15 minutes would have been enough for
        waited = trainer.global_step % 4 in (3, 0)  # one of each pair follows a validation, and writes more
        began = time.perf_counter()
        super().save(trainer, wer, state=state)
        if waited:
            self.module.writer.wait()
        self.seconds["waited for" if waited else "in the background"].append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default is that of temporary files")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--blocks", type=int, default=18, help="of the encoder: 18 are the paper's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        last = train(Path(name), args.steps, ConformerConfig(num_blocks=args.blocks))
        trained = sum(p.numel() for p in last.module.parameters())
        print(f"{describe(torch.get_num_threads())}; {trained / 1e6:.1f} M parameters, {args.steps} steps")
        held_up = {way: median(seconds) for way, seconds in last.seconds.items()}
        for way, seconds in held_up.items():
            print(f"training is held up by a save {way}: {seconds:.2f} s (median)")
        print(f"ratio {held_up['in the background'] / held_up['waited for']:.2f}")
        files = [path.stat() for path in last.folder.iterdir()]
        print(f"{len(files)} names, {sum({file.st_ino: file.st_size for file in files}.values()) / 1e9:.2f} GB")
        for path in sorted(last.folder.iterdir()):
            print(f"  {path.name:<32} {path.stat().st_size / 1e6:6.0f} MB, {path.stat().st_nlink} name(s)")


def train(folder: Path, steps: int, encoder: ConformerConfig) -> Timed:
    last = Timed()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        val_check_interval=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[last],
        default_root_dir=folder,
    )
    module = Weightless(tokenizer(), encoder, optimizer=partial(torch.optim.Adam, lr=1e-3))
    trainer.fit(module, DataLoader(torch.zeros(steps)), DataLoader(torch.zeros(1)))
    return last


def tokenizer() -> CtcTokenizer:
    writer = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["one two three"] * 10),
        model_writer=writer,
        vocab_size=16,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return CtcTokenizer.from_bytes(writer.getvalue())


if __name__ == "__main__":
    main()
