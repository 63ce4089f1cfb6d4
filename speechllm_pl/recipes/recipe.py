"""Recipe of a run: the files of conf/ and the overrides that make its `speechllm fit` line, and its folder."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from speechllm_pl.core.errors import UserError

Stage = Literal["pretrain_ctc", "finetune"]
CONF = Path("conf")
CHOICES = ("data", "size", "trainer", "augment")
"""Settings that are files of the folder of their name in conf/."""
BEST = Path("checkpoints", "best.ckpt")


@dataclass(frozen=True)
class Recipe:
    """Recipe for a run of one stage. Settings that are None are left to the configuration files.

    Fields' docstrings are the help of `speechllm run`.
    """

    stage: Stage
    data: str = "spoken_numbers"
    """Corpus: a file of conf/data."""
    size: str = "tiny"
    """Size of the encoder: a file of conf/size, and of conf/<stage> where the stage differs at this size."""
    trainer: str = "cpu"
    """Devices and how they share the work: a file of conf/trainer."""
    augment: str | None = None
    """What is done to the training audio: a file of conf/augment."""
    root: str | None = None
    """Folder of the prepared data; data/DATA without it."""
    llm: str | None = None
    """A file of conf/llm, or a folder or hub name of a causal LM; without it a tiny one is made of the data."""
    encoder: str | None = None
    """A file of conf/encoder, or a folder or hub name of a pretrained encoder; without it SIZE's conformer."""
    stride: str | None = None
    """Encoder frames in an audio embedding of stage 2, each of 80 ms with the conformer."""
    lora_r: str | None = None
    """Rank of LoRA in stage 2; 0 is none."""
    masking: str | None = None
    """Share of the text tokens that are hidden in the training of stage 2."""
    overrides: tuple[str, ...] = ()
    """Arguments of `speechllm fit` that come last."""
    run: str | None = None
    """Run folder; without it, it is named after the settings."""
    ckpt: str | None = None
    """Checkpoint to begin with, of stage 1 its state, of stage 2 its encoder (the best of stage 1 without it); or to
    evaluate or transcribe with, several to evaluate with commas."""
    ctc_run: str | None = None
    """Run folder of stage 1, where it has a name of its own."""
    text: str | None = None
    """Sentences without audio that stage 2, of which ckpt is one then, is adapted to: a file with one a line, or
    language<TAB>sentence."""
    text_share: str = "0.9"
    """Share of them in an epoch of the adaptation; the rest has audio."""

    def __post_init__(self) -> None:
        if not CONF.is_dir():
            raise UserError(f"there is no {CONF}/ in {Path.cwd()}: run this in the project's folder")
        for kind in CHOICES:
            name, known = getattr(self, kind), sorted(path.stem for path in (CONF / kind).glob("*.yaml"))
            if name is not None and name not in known:
                raise UserError(
                    f"{kind.upper()}={name}: there is no {CONF / kind / name}.yaml; there are {' '.join(known)}"
                )

    @property
    def folder(self) -> Path:
        """Folder of the prepared data."""
        return Path(self.root or f"data/{self.data}")

    @property
    def tiny_llm(self) -> Path | None:
        """Folder of the tiny LLM made of the transcripts, or None if another LLM is chosen."""
        made = self.folder / "llm"
        return made if self.stage == "finetune" and self.llm in (None, str(made)) else None

    @property
    def llm_file(self) -> Path | None:
        path = CONF / "llm" / f"{self.llm}.yaml"
        return path if self.llm and path.is_file() else None

    @property
    def encoder_arguments(self) -> list[str]:
        """The encoder's file, that of the stage with it, and the folder of its weights on this machine."""
        if self.encoder is None:
            return []
        known = (CONF / "encoder" / f"{self.encoder}.yaml").is_file()
        name = self.encoder if known else "pretrained"
        files = [path for path in (CONF / "encoder", CONF / self.stage) if (path / f"{name}.yaml").is_file()]
        arguments = [word for path in files for word in ("--config", str(path / f"{name}.yaml"))]
        here = local_model(self.encoder)
        return arguments + (["--model.encoder.name", str(here or self.encoder)] if here or not known else [])

    @property
    def configurations(self) -> list[Path]:
        """The configuration files, in an order in which later ones win."""
        names = [self.stage, f"data/{self.data}", f"size/{self.size}", f"{self.stage}/{self.size}"]
        names += [f"trainer/{self.trainer}", *([f"augment/{self.augment}"] if self.augment else [])]
        names += ["adapt_text"] if self.text else []
        files = [CONF / f"{name}.yaml" for name in names]
        return [path for path in files if path.is_file()]  # not every size has a file for a stage

    @property
    def fit_arguments(self) -> list[str]:
        """Arguments of `speechllm fit`, and of `plan` and `fetch`."""
        arguments = [word for path in self.configurations for word in ("--config", str(path))]
        if self.has_foreign_root:
            arguments += ["--data.root", str(self.folder)]
        arguments += self.encoder_arguments
        if self.stage == "pretrain_ctc":
            arguments += ["--run", str(self.run_folder), *(["--ckpt_path", self.ckpt] if self.ckpt else [])]
        else:
            arguments += ["--config", str(self.llm_file)] if self.llm_file else []
            arguments += [] if self.llm_file else ["--model.llm", self.llm or str(self.tiny_llm)]
            arguments += ["--run", str(self.run_folder)]
            arguments += self._beginning
            ablations = {"bridge.stride": self.stride, "lora_r": self.lora_r, "text_masking": self.masking}
            arguments += [word for name, value in ablations.items() if value for word in (f"--model.{name}", value)]
        return [*arguments, *self.overrides]

    @property
    def _beginning(self) -> list[str]:
        """Options that say what stage 2 begins with, and on what it is adapted."""
        if not self.text:
            return [ENCODER, self._stage_one_checkpoint] if self._stage_one_checkpoint else []
        alone = f"{{cuts: {self.texts_alone.name}, share: {self.text_share}}}"
        return [LLM_CHECKPOINT, str(self.ckpt), "--data.train", f"{{audio: train.jsonl.gz, text: {alone}}}"]

    @property
    def texts_alone(self) -> Path:
        """Manifest of the sentences without audio, beside the data's."""
        text = str(self.text)
        return self.folder / f"text-{Path(text).stem}-{digest(text)}.jsonl.gz"

    @property
    def has_foreign_root(self) -> bool:
        return os.path.normpath(self.folder) != os.path.join("data", self.data)

    @property
    def stage_one(self) -> "Recipe":
        """Stage 1 of the same data, size, augmentation and encoder."""
        settings = (self.data, self.size, self.trainer, self.augment, self.root)
        return Recipe("pretrain_ctc", *settings, encoder=self.encoder, run=self.ctc_run)

    @property
    def _stage_one_checkpoint(self) -> str | None:
        """Checkpoint with which stage 2 begins; None if a pretrained encoder is to begin without stage 1."""
        best = self.stage_one.best
        return self.ckpt or (str(best) if self.encoder is None or best.exists() else None)

    @cached_property
    def run_folder(self) -> Path:
        """The given folder, or one named after all settings that distinguish the run.

        The first part of the name holds data and its root, size, encoder, augmentation and ablations. After a plus
        follow the LLM, unless it is made of the data, and a digest of the overrides and the checkpoint of stage 1.
        """
        if self.run:
            return Path(self.run)
        first = [self.data, self.size, *([self.augment] if self.augment else [])]
        if self.has_foreign_root:
            first += [self.folder.name, digest(os.path.normpath(self.folder))]
        if self.stage == "finetune":
            ablations = {"stride": self.stride, "r": self.lora_r, "masking": self.masking}
            first += [f"{name}{value}" for name, value in ablations.items() if value]
            first += [Path(self.text).stem] if self.text else []
        rest = []
        if self.encoder:
            known = (CONF / "encoder" / f"{self.encoder}.yaml").is_file()
            first.insert(2, self.encoder if known else f"{Path(self.encoder).name}-{digest(self.encoder)}")
        if self.stage == "finetune" and not self.tiny_llm:
            llm = str(self.llm)
            rest.append(llm if self.llm_file else f"{Path(llm).name}-{digest(llm)}")
        if self._distinguishing:
            rest.append(digest(*self._distinguishing))
        return Path("runs", "adapt_text" if self.text else self.stage, "+".join(["-".join(first), *rest]))

    @property
    def _distinguishing(self) -> list[str]:
        """Words of the overrides that make another run, with the encoder if it is not the usual one."""
        usual = {"--model.tokenizer": str(self.folder / "tokenizer.model")}
        pairs = _pairs(self.overrides)
        if self.stage == "finetune":
            usual[ENCODER] = str(replace(self, ctc_run=None).stage_one.best)
            pairs[:0] = _pairs(self._beginning)
        other = [
            (name, value)
            for name, value in pairs
            if not name.startswith(NO_OTHER_RUN)
            and (name not in usual or os.path.normpath(value or "") != os.path.normpath(usual[name]))
        ]
        return [word for pair in other for word in pair if word is not None]

    @property
    def best(self) -> Path:
        """The best checkpoint of the newest run among this one and those whose names extend this one's.

        To evaluate a run, or to train stage 2 on it, the overrides of its training need not be repeated. A run with
        another LLM counts only if there is no other.
        """
        plain = self.run_folder / BEST
        if self.run:
            return plain
        length = len(self.run_folder.name)
        found = [path for path in (plain, *plain.parents[2].glob(f"{self.run_folder.name}+*/{BEST}")) if path.exists()]
        return max(
            found,
            key=lambda path: (bool(re.fullmatch(A_DIGEST, path.parents[1].name[length:])), path.stat().st_mtime_ns),
            default=plain,
        )


def local_model(name: str) -> Path | None:
    """Folder of a pretrained model in SPEECHLLM_MODELS, if it is there."""
    folder = Path(os.environ.get("SPEECHLLM_MODELS", "../shared/models"), name)
    return folder if (folder / "config.json").is_file() else None


def digest(*words: str) -> str:
    """Digest of words, eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]


OF_RECIPE = {
    "--data.root": "root",
    "--model.llm": "llm",
    "--model.encoder.name": "encoder",
    "--model.bridge.stride": "stride",
    "--model.lora_r": "lora_r",
    "--model.text_masking": "masking",
}
"""Options of `fit` that are settings of a recipe."""
ENCODER = "--model.encoder_checkpoint"
LLM_CHECKPOINT = "--model.llm_checkpoint"
A_DIGEST = r"(\+[0-9a-f]{8})?"
"""What overrides add to the name of a run."""
_CHANGEABLE = {
    "--trainer": (
        *("devices", "num_nodes", "accelerator", "strategy", "precision", "accumulate_grad_batches", "logger"),
        *("callbacks", "max_epochs", "max_steps", "limit_", "val_check_interval", "check_val_every_n_epoch"),
        *("num_sanity_val_steps", "log_every_n_steps", "enable_"),
    ),
    "--data": (
        *("num_workers", "timeout_seconds", "max_skipped_share", "other_data", "val_utterances", "val_max_duration"),
    ),
    "--model": ("max_skipped_steps", "activation_checkpointing", "compile_encoder"),
}
NO_OTHER_RUN = (
    *("--run", "--ckpt_path", "--print_config", "--help", "--last_checkpoints", "--whole_dev", "--largest_batches"),
    *(f"{part}.{name}" for part, names in _CHANGEABLE.items() for name in names),
)
"""Beginnings of options of `fit` that have no part in the name of its run: a run resumes with other values of them."""


def run_name(arguments: list[str]) -> str:
    """Run folder of a `fit` without `--run`: that of the recipe with the same arguments.

    Arguments outside a recipe count as overrides, except those that do not make another run.
    """
    chosen: dict[str, str] = {}
    rest = []
    for name, value in _pairs(arguments):
        path = Path(value or "")
        kind = path.parent.name if path.parent.parent.name == CONF.name else ""
        if name == "--config" and path.parent.name == CONF.name and path.stem in ("pretrain_ctc", "finetune"):
            chosen["stage"] = path.stem
        elif name == "--config" and kind in (*CHOICES, "llm", "encoder") and (CONF / kind / path.name).is_file():
            chosen[kind] = path.stem
        elif name == "--model.encoder.name" and value == str(local_model(chosen.get("encoder", ""))):
            continue
        elif name in OF_RECIPE:
            chosen[OF_RECIPE[name]] = value or ""
        elif not name.startswith(NO_OTHER_RUN) and not (name == "--config" and kind in ("pretrain_ctc", "finetune")):
            rest += [name, *([] if value is None else [value])]
    if {"stage", "data", "size"} <= chosen.keys():
        return str(Recipe(**chosen, overrides=tuple(rest)).run_folder)  # type: ignore[reportArgumentType]
    return str(Path("runs", chosen.get("stage", "fit"), digest(*map(str, sorted(chosen.items())), *rest)))


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Pairs of options and values, from `--a=b` as from `--a b`."""
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            pairs.append((name, value if equals else None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], argument)
        else:
            pairs.append((argument, None))
    return pairs


def words(text: str | None) -> list[str]:
    """Split a line into words as a shell does."""
    return shlex.split(text or "")
