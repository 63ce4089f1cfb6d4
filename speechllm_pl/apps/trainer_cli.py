"""Lightning's `fit | validate | test | predict`, with the options of models, data and trainer.

A run has one folder, `--run`. Starting a command again with the same folder resumes what was interrupted.
"""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.optim import Optimizer

from speechllm_pl.apps.missing_values import refuse_missing_values
from speechllm_pl.apps.option_parser import OneLineErrors
from speechllm_pl.apps.pinned_llm import pin_llm
from speechllm_pl.apps.plan import fitting_duration
from speechllm_pl.apps.val_duration import fitting_val_duration
from speechllm_pl.core.bf16 import bf16_is_faster
from speechllm_pl.core.errors import UserError, in_one_line, user_error
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.bridges.protocol import BridgeConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.ctc import EncoderConfig
from speechllm_pl.models.features import SpecAugmentConfig
from speechllm_pl.optim.schedules import Schedule
from speechllm_pl.recipes.recipe import run_name
from speechllm_pl.storage.checkpoints import BEST, newest_complete
from speechllm_pl.training.cached_frames import CacheFrames
from speechllm_pl.training.callbacks import (
    AugmentationSamples,
    Finished,
    LanguageShares,
    Predictions,
    RunRecord,
    Samples,
)
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.data_checks import DataChecks
from speechllm_pl.training.interruption import LastCheckpoints
from speechllm_pl.training.log_lines import LogLines
from speechllm_pl.training.probe import LargestBatches
from speechllm_pl.training.real_frames import MeasureRealFrames
from speechllm_pl.training.speed import Speed
from speechllm_pl.training.stage import Stage
from speechllm_pl.training.whole_dev import WholeDev


class TrainerParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with errors in one line."""

    def known_names(self) -> set[str]:
        """Names of the options, and of the constructor arguments of the classes that they build."""
        bases = (Stage, Schedule, Optimizer, EncoderConfig, BridgeConfig)
        kinds = [*(kind for base in bases for kind in base.__subclasses__()), SpeechLlmConfig, SpecAugmentConfig]
        return super().known_names() | {name for kind in kinds for name in inspect.signature(kind).parameters}


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's formatter, which keeps the line breaks of the description."""


class SpeechCLI(LightningCLI):
    """Trainer, model and data of a stage from the command line."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The requested subcommand only: parsers of all would take seconds."""
        every = LightningCLI.subcommands()
        return {name: skipped for name, skipped in every.items() if name == sys.argv[1]} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        named = run_name(sys.argv[2:])
        parser.add_argument("--run", type=str, default=named, help="Folder of this run, named after its arguments.")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("model.llm_input", "data.llm_input", apply_on="instantiate")
        parser.add_lightning_class_args(LastCheckpoints, "last_checkpoints")
        parser.add_lightning_class_args(WholeDev, "whole_dev")
        parser.add_lightning_class_args(LargestBatches, "largest_batches")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and derive values that follow from others: the tokenizer is that of the data, precision the CPU's."""
        super().parse_arguments(parser, args)
        config = self.config[self.config["subcommand"]]
        if config.model.init_args.tokenizer == "":
            config.model.init_args.tokenizer = str(Path(config.data.root, "tokenizer.model"))
        if config.trainer.accelerator == "cpu" and config.trainer.precision is None:
            config.trainer.precision = "bf16-mixed" if bf16_is_faster(torch.device("cpu")) else "32-true"

    def _parse_ckpt_path(self) -> None:
        """Skip Lightning's search for hyperparameters: our checkpoints hold none, and are read when needed."""

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        refuse_missing_values(config.model)
        pin_llm(config)
        if self.subcommand == "fit" and config.data.max_duration == "auto":
            config.data.max_duration = fitting_duration(config)
        if config.data.val_max_duration == "auto" and config.data.max_duration != "auto":
            config.data.val_max_duration = fitting_val_duration(config)
        if config.trainer.logger is None:
            config.trainer.logger = Namespace(
                class_path="lightning.pytorch.loggers.TensorBoardLogger",
                init_args=Namespace(save_dir=config.run, name="", version="logs"),
            )

    def instantiate_classes(self) -> None:
        """Build model, data and trainer.

        Raises:
            UserError: a class refuses a value, which shows only now.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if user_error(error) is not None:
                raise
            raise UserError(f"the configuration cannot be used: {in_one_line(error)}") from error

    def instantiate_trainer(self, **arguments: Any) -> Any:
        plugins = [*(self.config_init[str(self.subcommand)].trainer.plugins or []), AtomicCheckpointIO()]
        if SLURMEnvironment.detect():  # requeueing is ours
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return super().instantiate_trainer(**arguments, plugins=plugins)

    def before_fit(self) -> None:
        config = self.config_init[str(self.subcommand)]
        last = newest_complete(Path(config.run, "checkpoints"))
        if config.ckpt_path == "last" and last is None:
            raise UserError(f"--ckpt_path last: there is no checkpoint in {config.run}/checkpoints yet")
        if last and str(config.ckpt_path) != str(last):  # a requeued job has the arguments that it began with
            instead = "" if config.ckpt_path in (None, "last") else f", not {config.ckpt_path}"
            if self.trainer.is_global_zero:
                print(f"resuming {last}{instead}; to start anew give another folder with --run (RUN=)", flush=True)
            config.ckpt_path = str(last)
        self._tell_trainer(config)

    def _use_best(self) -> None:
        config = self.config_init[str(self.subcommand)]
        best = Path(config.run, "checkpoints", BEST)
        if config.ckpt_path is None and not best.exists():
            raise UserError(f"{self.subcommand} needs a trained model: give --ckpt_path, or --run of a fit ({best})")
        config.ckpt_path = config.ckpt_path or str(best)
        self._tell_trainer(config)

    def _tell_trainer(self, config: Any) -> None:
        """Set the trainer's checkpoint before stage 2 is built: a restored one needs no encoder of stage 1."""
        self.trainer.ckpt_path, config.ckpt_path = config.ckpt_path, None

    before_validate = before_test = before_predict = _use_best


class ParsedOnly(SpeechCLI):
    """Parse the configuration only, without building or running anything."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    _set_seed = before_instantiate_classes = instantiate_classes

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def fit_configuration(arguments: list[str]) -> Any:
    """The configuration that `fit` would run with, without building anything."""
    sys.argv = ["speechllm", "fit", *arguments]
    return run_trainer(ParsedOnly).config.fit


def run_trainer(kind: type[SpeechCLI] = SpeechCLI) -> SpeechCLI:
    """Run the command that `sys.argv` holds.

    Raises:
        UserError: Lightning or one of our own classes refuses the settings.
    """
    try:
        return kind(
            Stage,
            SpeechDataModule,
            subclass_mode_model=True,
            save_config_callback=RunRecord,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=1,
            parser_class=TrainerParser,
            parser_kwargs={"description": __doc__, "formatter_class": HelpFormatter},
            trainer_defaults={
                "callbacks": [
                    *(LearningRateMonitor("step"), Speed(), LanguageShares(), Samples(), AugmentationSamples()),
                    *(DataChecks(), CacheFrames(), MeasureRealFrames(), Predictions(), Finished(), LogLines()),
                ],
                "use_distributed_sampler": False,
                "reload_dataloaders_every_n_epochs": 1,
                "inference_mode": False,  # in which sharded weights cannot be gathered
            },
        )
    except Exception as error:
        message = user_error(error, MisconfigurationException)
        if message is None or isinstance(error, UserError):
            raise
        raise UserError(message) from error
