"""The `speechllm` command: Lightning's `fit | validate | test | predict`, and our own programs beside them.

A run has one folder, `--run`. Starting a command again with the same folder resumes what was interrupted.
"""

import argparse
import difflib
import inspect
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from speechllm_pl.core.errors import LOST, UserError, in_one_line, printable

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
HARMLESS = (
    ".*(srun|treespec|sync_dist|eval mode at the start|model summary|is_gradient_checkpointing"
    "|metric states have not yet been updated"  # of a rank that had no utterance
    "|dataloader is not resumable"  # ours is, by the data module's state
    "|smaller than the logging interval).*"  # which does not begin anew in each epoch
)
"""Warnings of the libraries that a user can do nothing about."""
ADVICE = re.compile(
    "Tip: For seamless|TPU available: False|was configured so validation will run|to estimate number of stepping"
    r"|Restoring states from|\[rank: [1-9]\d*\] Seed set|MEMBER: 1/1$|Starting with 1 processes"
)
"""What Lightning tells whoever runs it: of its maker's products, of other devices, of what holds by default, of what it
is about to do, and of each rank or a single one what holds for all."""
TALKATIVE = ("pytorch.utilities.rank_zero", "fabric.utilities.seed", "fabric.utilities.distributed")
"""Lightning's loggers of that."""
UNKNOWN = re.compile(r"(?:unrecognized arguments: --|[Oo]ption ')([\w.-]+)")
"""How jsonargparse names what it does not know."""
OPTIONAL = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.*?) - Expected a <class 'NoneType'>"
    " Given value type: .*"
)
"""Its account of a bad value where None would do as well; the group is what matters."""


def main() -> None:
    """Run a command.

    Bad input ends with one line and status 2, a signal with 128 plus its number, everything saved. Where several
    processes work together, the one that fails ends them all, and says which one it is.
    """
    warnings.filterwarnings("ignore", message=HARMLESS)
    for name in TALKATIVE:
        logging.getLogger(f"lightning.{name}").addFilter(_is_no_advice)
    try:
        _run_command()
    except Exception as error:
        if type(error).__name__ == "Stopped":  # imported with torch, which a misspelt command need not wait for
            _stopped(error)
        message = _user_error(error)
        if message is not None:
            print(f"error: {_rank()}{printable(message)}", file=sys.stderr)
            _end(2)
        if _processes() == 1:
            raise
        if LOST.search(str(error)):
            time.sleep(10)  # in which the launcher ends this process too; the message to read is the other's
            print(f"{_rank()}perhaps another rank is gone (see its message): {error!r}", file=sys.stderr)
        else:
            print(f"{_rank()}{traceback.format_exc()}", file=sys.stderr)
        _end(1)
    except KeyboardInterrupt as interruption:
        _interrupted(*interruption.args)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way of passing it on
            _interrupted()
        raise


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not ADVICE.search(record.getMessage())


def _processes() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> str:
    """`rank 3: ` where several processes work together."""
    import torch.distributed as dist

    return f"rank {dist.get_rank()}: " if _processes() > 1 else ""


def _end(status: int) -> NoReturn:
    """Exit; among several processes without the goodbyes of torch, which would wait for the others."""
    if _processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _stopped(stop: Any) -> NoReturn:
    from speechllm_pl.training.interruption import EXIT_BASE

    first = not _rank() or _rank() == "rank 0: "
    if first:
        print(f"{stop}, and saved: run the same command again to continue", file=sys.stderr)
    _end(EXIT_BASE + stop.signum if first else 0)  # Lightning would take another status for a crash


def _interrupted(told: str = "run the same command again") -> NoReturn:
    print(f"interrupted: {told}", file=sys.stderr)
    sys.exit(130)


def _run_command() -> None:
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    command, programs = sys.argv[1], _programs()
    commands = (*TRAINER_COMMANDS, *programs)
    group = [name for name in programs if name.startswith(f"{command} ")]
    if group:
        _run_one_of(group, programs)
    elif command in ("plan", "fetch"):
        programs[command](sys.argv[2:], _fit_configuration)
    elif command in programs:
        _run_program(command, programs[command], sys.argv[2:])
    elif command in commands or command.startswith("-"):
        _trainer_cli(programs)
    else:
        raise UserError(f"there is no command {command}.{_nearest(command, commands)} Commands: {', '.join(commands)}")


def _run_one_of(group: list[str], programs: dict[str, Any]) -> None:
    """The program of a group, which two words name."""
    name = " ".join(sys.argv[1:3])
    if name in group:
        _run_program(name, programs[name], sys.argv[3:])
    elif len(sys.argv) == 2 or sys.argv[2].startswith("-"):
        print(_program_list({name: programs[name] for name in group}))
    else:
        raise UserError(f"there is no command {name}.{_nearest(name, group)} Commands: {', '.join(group)}")


def _user_error(error: BaseException | None) -> str | None:
    """What to tell the user, where it is theirs to mend: jsonargparse wraps errors that constructors raise."""
    while error is not None:
        if isinstance(error, UserError) or type(error).__name__ == "MisconfigurationException":
            return " ".join(str(error).split())
        error = error.__cause__
    return None


def _programs() -> dict[str, Any]:
    from speechllm_pl.apps.average import average
    from speechllm_pl.apps.consolidate import consolidate
    from speechllm_pl.apps.data_report import data_report
    from speechllm_pl.apps.evaluate import evaluate
    from speechllm_pl.apps.fetch import fetch
    from speechllm_pl.apps.plan import plan
    from speechllm_pl.apps.report import report
    from speechllm_pl.apps.transcribe import transcribe

    programs = (evaluate, transcribe, report, plan, fetch, average, consolidate)
    return {program.__name__: program for program in programs} | {"data report": data_report}


def _run_program(name: str, program: Any, arguments: list[str]) -> None:
    """Options by name; only `files` stand without one, as shells expand them."""
    names = set(inspect.signature(program).parameters)
    parser = _parser_class()(prog=f"speechllm {name}", description=_summary(program))
    parser.add_function_arguments(program, as_positional=False, skip={"files"})
    if "files" in names:
        parser.add_argument("files", nargs="+", type=str, help="audio files, or folders of them")
    values = vars(parser.parse_args(_switches_spelt_out(program, arguments)))
    program(**{name: value for name, value in values.items() if name in names})


def _switches_spelt_out(program: Any, arguments: list[str]) -> list[str]:
    """`--allow-command-sources` as `--allow_command_sources true`: a setting that is on or off may stand alone."""
    switches = {name for name, setting in inspect.signature(program).parameters.items() if setting.annotation is bool}
    spelt = []
    for place, argument in enumerate(arguments):
        name = argument.removeprefix("--").replace("-", "_")
        alone = arguments[place + 1 : place + 2] not in (["true"], ["false"])
        if argument.startswith("--") and name in switches:
            spelt += [f"--{name}", "true"] if alone else [f"--{name}"]
        else:
            spelt.append(argument)
    return spelt


def _parser_class() -> type:
    """jsonargparse's parser, with the nearest valid name in its error about an unknown one, and YAML within bounds."""
    from jsonargparse import _loaders_dumpers
    from lightning.pytorch.cli import LightningArgumentParser

    from speechllm_pl.training.configuration import BoundedLoader

    _loaders_dumpers.yaml_default_loader = BoundedLoader

    class Parser(LightningArgumentParser):
        def __init__(self, *arguments: Any, **options: Any):
            # Abbreviations would take a misspelt --trainer.max_epoch for --trainer.max_epochs.
            super().__init__(*arguments, allow_abbrev=False, **options)

        def parse_path(self, path: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return super().parse_path(path, *arguments, **options)
            except (UserError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: {error}") from error

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(_one_line(message, self))

    return Parser


def _one_line(message: str, parser: Any) -> str:
    message = OPTIONAL.sub(r"\1", " ".join(message.split()))
    found = None if "Did you mean" in message else UNKNOWN.search(message)  # a parser inside this one may have asked
    return f"{message}.{_nearest(found[1], _known_names(parser))}" if found else message


def _nearest(name: str, known: Iterable[str]) -> str:
    """A question after the valid name that is nearest to `name`, or else to its first part; empty when none is."""
    known = sorted(set(known))
    nearest = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.split(".")[0], known, n=1)
    return f" Did you mean {nearest[0]}?" if nearest and nearest[0] != name else ""


def _known_names(parser: Any) -> set[str]:
    """Every option of a parser and its subcommands, and the constructor arguments of what they build by name."""
    names = _constructor_arguments()
    for part in (parser, *getattr(parser._subcommands_action, "_name_parser_map", {}).values()):
        for action in part._actions:
            names |= {action.dest, *(option.lstrip("-") for option in action.option_strings)}
    return names


def _constructor_arguments() -> set[str]:
    from torch.optim import Optimizer

    from speechllm_pl.models.conformer import ConformerConfig
    from speechllm_pl.models.features import SpecAugmentConfig
    from speechllm_pl.optim.schedules import Schedule
    from speechllm_pl.training.recognizer import Recognizer

    families = [kind for base in (Recognizer, Schedule, Optimizer) for kind in base.__subclasses__()]
    kinds = (*families, ConformerConfig, SpecAugmentConfig)
    return {name for kind in kinds for name in inspect.signature(kind).parameters}


def _fit_configuration(arguments: list[str]) -> Any:
    """The configuration that `fit` would run with; nothing is built."""
    sys.argv = ["speechllm", "fit", *arguments]
    return _trainer_cli({}, build=False).config.fit


def _trainer_cli(programs: dict[str, Any], build: bool = True) -> Any:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.cli import LightningCLI

    from speechllm_pl.apps.missing_values import refuse_missing_values
    from speechllm_pl.apps.pinned_llm import pin_llm
    from speechllm_pl.apps.plan import fitting_duration
    from speechllm_pl.apps.val_duration import fitting_val_duration
    from speechllm_pl.data.datamodule import SpeechDataModule
    from speechllm_pl.storage.checkpoints import BEST, newest_complete
    from speechllm_pl.training.callbacks import (
        AugmentationSamples,
        Finished,
        LanguageShares,
        Predictions,
        RunRecord,
        Samples,
    )
    from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
    from speechllm_pl.training.interruption import LastCheckpoints
    from speechllm_pl.training.probe import LargestBatches
    from speechllm_pl.training.recognizer import Recognizer
    from speechllm_pl.training.speed import Speed
    from speechllm_pl.training.whole_dev import WholeDev

    class SpeechCLI(LightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """The one that is asked for: a parser of each would take seconds."""
            every = LightningCLI.subcommands()
            return {name: skipped for name, skipped in every.items() if name == sys.argv[1]} or every

        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--run", type=str, default="runs/default", help="folder of this run")
            parser.link_arguments("run", "trainer.default_root_dir")
            parser.add_lightning_class_args(LastCheckpoints, "last_checkpoints")
            parser.add_lightning_class_args(WholeDev, "whole_dev")
            parser.add_lightning_class_args(LargestBatches, "largest_batches")

        def _parse_ckpt_path(self) -> None:
            """Lightning would look for hyperparameters; our checkpoints hold none, and are read when needed."""

        def before_instantiate_classes(self) -> None:
            config = self.config[str(self.subcommand)]
            refuse_missing_values(config.model)
            pin_llm(config)
            if self.subcommand == "fit" and config.data.max_duration == "auto":
                config.data.max_duration = fitting_duration(config)
            if config.data.val_max_duration == "auto" and config.data.max_duration != "auto":
                config.data.val_max_duration = fitting_val_duration(config)
            if config.trainer.logger is None:
                from jsonargparse import Namespace

                config.trainer.logger = Namespace(
                    class_path="lightning.pytorch.loggers.TensorBoardLogger",
                    init_args=Namespace(save_dir=config.run, name="", version="logs"),
                )

        def instantiate_classes(self) -> None:
            """
            Raises:
                UserError: of a value that no class takes, which is seen no sooner.
            """
            try:
                super().instantiate_classes()
            except ValueError as error:
                if _user_error(error) is not None:
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

        def _use_best(self) -> None:
            config = self.config_init[str(self.subcommand)]
            best = Path(config.run, "checkpoints", BEST)
            if config.ckpt_path is None and not best.exists():
                raise UserError(
                    f"{self.subcommand} needs a trained model: give --ckpt_path, or --run of a fit ({best})"
                )
            config.ckpt_path = config.ckpt_path or str(best)

        before_validate = before_test = before_predict = _use_best

    class ParsedOnly(SpeechCLI):
        def instantiate_classes(self) -> None:
            """Nothing: the configuration is all that is wanted."""

        _set_seed = before_instantiate_classes = instantiate_classes

        def _run_subcommand(self, subcommand: str) -> None:
            """Nothing."""

    return (SpeechCLI if build else ParsedOnly)(
        Recognizer,
        SpeechDataModule,
        subclass_mode_model=True,
        save_config_callback=RunRecord,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=1,
        parser_class=_parser_class(),
        parser_kwargs={"description": __doc__, "epilog": _program_list(programs), "formatter_class": _help_formatter()},
        trainer_defaults={
            "callbacks": [
                *(LearningRateMonitor("step"), Speed(), LanguageShares(), Samples(), AugmentationSamples()),
                *(Predictions(), Finished()),
            ],
            "use_distributed_sampler": False,
            "reload_dataloaders_every_n_epochs": 1,
            "inference_mode": False,  # in which sharded weights cannot be gathered
        },
    )


def _program_list(programs: dict[str, Any]) -> str:
    rows = [f"    {name:<19} {_summary(program)}" for name, program in programs.items()]
    return "\n".join(["our own programs:", *rows])


def _summary(program: Any) -> str:
    return program.__doc__.splitlines()[0]


def _help_formatter() -> type:
    """jsonargparse's, which leaves the line breaks of description and epilog alone."""
    from jsonargparse import DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        pass

    return Formatter


if __name__ == "__main__":
    main()
