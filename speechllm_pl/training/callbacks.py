"""Callbacks that document a run: its record, the data it has heard, and samples of what it recognises."""

import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import torch
from lhotse.cut import Cut
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from speechllm_pl.configuration.bounded_yaml import parsed_configuration, read_configuration
from speechllm_pl.core.audio.units import FFT, HOP, SAMPLING_RATE, seconds_of
from speechllm_pl.core.padded import Padded
from speechllm_pl.data.augmentation import augment
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.utterance import Utterance, read_utterance
from speechllm_pl.models.features import FilterBank
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.storage.checkpoints import newest_complete
from speechllm_pl.training.data_checks import data_of
from speechllm_pl.training.resumption import CHANGED, changes, keep_former
from speechllm_pl.training.stage import Stage
from speechllm_pl.training.step import is_logged

FINISHED = "finished.json"
PACKAGES = ("torch", "torchaudio", "lightning", "transformers", "peft", "lhotse", "sentencepiece", "jiwer")


class RunRecord(SaveConfigCallback):
    """Writes the resolved configuration, versions, git commit, seed and command of a fit into the run folder.

    A resumed run first prints what has changed in its configuration; the former one is kept (config.1.yaml).
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Record a new `fit` at once; a test of the run must not replace the record of its training."""
        if stage == "fit" and newest_complete(Path(trainer.default_root_dir, "checkpoints")) is None:
            self.save_config(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Update the record only now: settings that a checkpoint refuses never take effect."""
        if trainer.ckpt_path is not None:
            self._tell_changes(Path(trainer.ckpt_path).parent.parent / "config.yaml")
        self.save_config(trainer, pl_module, "fit")

    @rank_zero_only
    def _tell_changes(self, former: Path) -> None:
        if former.is_file():
            text = self.parser.dump(self.config, skip_none=False)
            for change in changes(read_configuration(former), parsed_configuration(text)):
                rank_zero_info(f"{CHANGED}{change}")

    @rank_zero_only
    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        keep_former(folder / "config.yaml", self.parser.dump(self.config, skip_none=False))
        record = {
            "command": sys.argv,
            "seed": self.config.get("seed_everything"),
            "git_commit": _git("rev-parse", "HEAD"),
            "git_changes": _git("status", "--porcelain").splitlines(),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "processes": trainer.world_size,
            "packages": {name: version(name) for name in ("speechllm_pl", *PACKAGES)},
        }
        (folder / "environment.json").write_text(json.dumps(record, indent=2) + "\n")


class Predictions(L.Callback):
    """Writes the texts of `speechllm predict` into the run folder, one JSON object per utterance."""

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        name = f"predictions-{trainer.global_rank}.jsonl" if trainer.world_size > 1 else "predictions.jsonl"
        self.path = Path(trainer.default_root_dir, name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: list[dict[str, str]], *_: Any
    ) -> None:
        with self.path.open("a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in outputs)


class Finished(Checkpoint):
    """Writes finished.json into the run folder when a fit runs to its end, not when it is interrupted.

    If no step was left to take, the record of the start that took the last one is kept.

    Lightning calls checkpoint callbacks last: this is one, so that it comes after `WholeDev`.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.time()

    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if finished_before(trainer):
            return
        record = {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "seconds": round(time.time() - self.started, 1),  # of this start, should the run have been resumed
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        }
        Path(trainer.default_root_dir, FINISHED).write_text(json.dumps(record, indent=2) + "\n")


def finished_before(trainer: L.Trainer) -> bool:
    """Whether an earlier start of the run finished with the same number of steps."""
    path = Path(trainer.default_root_dir, FINISHED)
    return path.is_file() and json.loads(path.read_text())["steps"] == trainer.global_step


class LanguageShares(L.Callback):
    """Prints the training data of each language, and logs how many epochs and hours of it have been heard."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.data = data_of(trainer)
        if self.data is not None and len(self.data.mixture.groups) > 1:
            rank_zero_info("\n".join(["training data:", *self.data.mixture.table()]))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.data is None or not trainer.is_global_zero:
            return
        if not is_logged(trainer, trainer.global_step):
            return
        for kind, values in zip(("epochs", "hours"), self.data.heard(batch_idx + 1), strict=True):
            for language, value in values.items():
                pl_module.log(f"data/{kind}/{language}", value, batch_size=1, rank_zero_only=True)


class StepLog(L.Callback):
    """Writes the utterances of each batch, and the loss of its step so far, into the run folder.

    Off by default: `--trainer.callbacks+=speechllm_pl.training.callbacks.StepLog`.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.path = Path(trainer.default_root_dir, f"steps-{trainer.global_rank}.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.step = trainer.global_step + 1  # that the batch belongs to: several do when gradients are accumulated

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Stage, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        row = {"step": self.step, "epoch": trainer.current_epoch, "loss": pl_module.step_loss, "ids": batch.ids}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Samples(L.Callback):
    """Logs transcripts of the first utterances at each validation, and one spectrogram with its CTC posteriors.

    The spectrogram needs a whole model on this rank (`ShardedStrategy.gather_up_to_gib`), and audio, not cached frames.

    Args:
        utterances: Number of utterances whose transcripts are logged.
    """

    def __init__(self, utterances: int = 8):
        self.utterances = utterances

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Stage,
        outputs: dict[str, list[Hypothesis]],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        board = _tensorboard(trainer)
        if batch_idx or board is None or not batch.ids:
            return
        rows = ["| id | system | text |", "|---|---|---|"]
        for row, id_ in list(enumerate(batch.ids))[: self.utterances]:
            rows.append(f"| {id_} | reference | {batch.texts[row]} |")
            rows += [f"| | {system} | {found[row].text} |" for system, found in outputs.items()]
        board.add_text("samples/transcripts", "\n".join(rows), trainer.global_step)
        if batch.frozen is None and not pl_module.in_lockstep:  # the other ranks would not take part in drawing it
            board.add_figure("samples/posteriors", posterior_figure(pl_module, batch), trainer.global_step)


def posterior_figure(module: Stage, batch: Batch) -> Figure:
    """Plot the first utterance's filter banks above the probabilities of its likeliest CTC classes, frame by frame."""
    first = Padded(batch.waveforms[:1, : batch.lengths[0]], batch.lengths[:1])
    with torch.no_grad():
        features, _ = FilterBank().to(first.values.device)(first)
        logits, _ = module.speech(first)
    posteriors = logits[0].float().softmax(-1).cpu()
    seen = list(dict.fromkeys(posteriors.argmax(-1).tolist()))
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 6), layout="constrained")
    above.imshow(features[0].T.float().cpu(), origin="lower", aspect="auto", cmap="magma")
    above.set(title=f"{batch.ids[0]}: {batch.texts[0]}", xlabel="10 ms frames", ylabel="mel bin")
    below.imshow(posteriors[:, seen].T, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    below.set_yticks(range(len(seen)), [module.tokenizer.pieces[i] for i in seen])
    below.set(xlabel=f"{1000 * module.speech.seconds_per_frame:g} ms frames", ylabel="CTC class")
    return figure


class AugmentationSamples(L.Callback):
    """Logs two utterances after each augmentation, and after all of them in the first epoch, when a run begins.

    Each is a figure of spectrograms before and after, with what was drawn, and the audio.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data, board = data_of(trainer), _tensorboard(trainer)
        if trainer.global_step or board is None or data is None:
            return
        augmentations = data.augmentations
        utterances = some_of_one_language(data.cuts("train")) if augmentations else []
        if not utterances:
            return
        for number, utterance in enumerate(utterances):
            _add_audio(board, f"augmentation/0 none/{number}", utterance)
        each = [
            (type(augmentation).__name__, [replace(augmentation, probability=1.0)]) for augmentation in augmentations
        ]
        for place, (name, chosen) in enumerate([*each, ("all", augmentations)], start=1):
            changed = augment(utterances, chosen, data.seed, epoch=0)
            board.add_figure(f"augmentation/{place} {name}", augmentation_figure(utterances, changed))
            for number, utterance in enumerate(changed):
                _add_audio(board, f"augmentation/{place} {name}/{number}", utterance)


def some_of_one_language(cuts: Sequence[Cut], count: int = 2, among: int = 50) -> list[Utterance]:
    """Up to `count` readable utterances of one language, the first that has as many."""
    found: dict[str, list[Utterance]] = {}
    for number in range(min(among, len(cuts))):
        try:
            utterance = read_utterance(cuts[number])
        except Exception:  # whatever a decoder throws: training will skip it, and say so
            continue
        found.setdefault(utterance.language, []).append(utterance)
        if len(found[utterance.language]) == count:
            break
    return max(found.values(), key=len, default=[])


def augmentation_figure(before: list[Utterance], after: list[Utterance]) -> Figure:
    """Plot spectrograms in dB on one time scale: the recording on the left, what training sees on the right."""
    rows = max(len(before), len(after))
    figure, panels = plt.subplots(rows, 2, figsize=(14, 3 * rows), sharex=True, squeeze=False, layout="constrained")
    longest = seconds_of(max(len(utterance.samples) for utterance in (*before, *after)))
    for column, utterances in zip(panels.T, (before, after), strict=True):
        for panel, utterance in itertools.zip_longest(column, utterances):
            if utterance is None:  # joined with another
                panel.set_axis_off()
                continue
            shown = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -60, "vmax": 30}
            extent = (0, seconds_of(len(utterance.samples)), 0, SAMPLING_RATE / 2)
            panel.imshow(_decibels(utterance.samples), extent=extent, **shown)
            title = "; ".join(utterance.drawn) or utterance.id
            panel.set(title=title, xlabel="seconds", ylabel="Hz", xlim=(0, longest))
    return figure


def _decibels(samples: np.ndarray) -> np.ndarray:
    """Spectrogram in dB, `(257, T)`, of `(N,)` samples: windows of 32 ms every 10 ms."""
    padded = torch.from_numpy(np.pad(samples, (0, max(0, FFT - len(samples)))))
    spectrum = torch.stft(padded, FFT, hop_length=HOP, window=torch.hann_window(FFT), return_complex=True)
    return 20 * spectrum.abs().clamp(min=1e-4).log10().numpy()


def _add_audio(board: SummaryWriter, tag: str, utterance: Utterance) -> None:
    peak = max(1.0, float(np.abs(utterance.samples).max()))  # beyond 1 it would be clipped
    board.add_audio(tag, torch.from_numpy(utterance.samples / peak), sample_rate=SAMPLING_RATE)


def _tensorboard(trainer: L.Trainer) -> SummaryWriter | None:
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero and not trainer.sanity_checking else None


def _git(*arguments: str) -> str:
    """Output of git about the running code; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=here).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
