"""The `speechllm` command: Lightning's `fit | validate | test | predict`, and our own programs beside them.

A run has one folder, `--run`. Starting a command again with the same folder resumes what was interrupted.
"""

import difflib
import inspect
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from speechllm_pl.core.errors import UserError

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
LAST = "last.ckpt"
HARMLESS = ".*(num_workers|treespec|sync_dist|eval mode at the start|model summary|is_gradient_checkpointing).*"
"""Warnings of the libraries that a user can do nothing about."""


def main() -> None:
    """Run a command; bad input ends with one line and status 2, an interrupt with status 130."""
    warnings.filterwarnings("ignore", message=HARMLESS)
    try:
        command = sys.argv[1] if len(sys.argv) > 1 else "--help"
        programs = _programs()
        if command in programs:
            _run_program(programs[command], sys.argv[2:])
        else:
            _trainer_cli()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _programs() -> dict[str, Any]:
    from speechllm_pl.apps.evaluate import evaluate
    from speechllm_pl.apps.report import report
    from speechllm_pl.apps.transcribe import transcribe

    return {"evaluate": evaluate, "transcribe": transcribe, "report": report}


def _run_program(program: Any, arguments: list[str]) -> None:
    """Options by name; only `files` stand without one, as shells expand them."""
    names = set(inspect.signature(program).parameters)
    parser = _parser_class()(prog=f"speechllm {program.__name__}", description=program.__doc__.splitlines()[0])
    parser.add_function_arguments(program, as_positional=False, skip={"files"})
    if "files" in names:
        parser.add_argument("files", nargs="+", type=str, help="audio files, or folders of them")
    values = vars(parser.parse_args(arguments))
    program(**{name: value for name, value in values.items() if name in names})


def _parser_class() -> type:
    """jsonargparse's parser, with the nearest valid name in its error about an unknown one."""
    from lightning.pytorch.cli import LightningArgumentParser

    class Parser(LightningArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(_one_line(message, self))

    return Parser


def _one_line(message: str, parser: Any) -> str:
    message = " ".join(message.split())
    known = sorted(_known_names(parser))
    for unknown in re.findall(r"(?:--|key ')([\w.]+)|Key '([\w.]+)'", message, flags=re.IGNORECASE):
        name = next(part for part in unknown if part)
        nearest = difflib.get_close_matches(name, known, n=1)
        if nearest and name not in known:
            return f"{message} Did you mean {nearest[0]}?"
    return message


def _known_names(parser: Any) -> set[str]:
    names = set()
    for action in parser._actions:
        names |= {option.lstrip("-") for option in action.option_strings}
        names.add(action.dest)
    return names


def _trainer_cli() -> None:
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI

    from speechllm_pl.data.datamodule import SpeechDataModule
    from speechllm_pl.training.callbacks import Finished, RunRecord, Samples, Speed
    from speechllm_pl.training.checkpoints import AtomicCheckpointIO
    from speechllm_pl.training.recognizer import Recognizer

    class SpeechCLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--run", type=str, default="runs/default", help="folder of this run")
            parser.link_arguments("run", "trainer.default_root_dir")
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            parser.set_defaults(
                {
                    "checkpoint.filename": "best",
                    "checkpoint.monitor": "val/wer",
                    "checkpoint.mode": "min",
                    "checkpoint.save_last": True,
                    "checkpoint.enable_version_counter": False,
                }
            )
            parser.link_arguments("run", "checkpoint.dirpath", compute_fn=lambda run: f"{run}/checkpoints")

        def before_instantiate_classes(self) -> None:
            config = self.config[str(self.subcommand)]
            if config.trainer.logger is None:
                from jsonargparse import Namespace

                config.trainer.logger = Namespace(
                    class_path="lightning.pytorch.loggers.TensorBoardLogger",
                    init_args=Namespace(save_dir=config.run, name="", version="logs"),
                )

        def instantiate_trainer(self, **arguments: Any) -> Any:
            plugins = [*(self.config_init[str(self.subcommand)].trainer.plugins or []), AtomicCheckpointIO()]
            return super().instantiate_trainer(**arguments, plugins=plugins)

        def before_fit(self) -> None:
            config = self.config_init[str(self.subcommand)]
            last = Path(config.run, "checkpoints", LAST)
            if config.ckpt_path is None and last.is_file():
                print(f"resuming {last}; to start anew give another folder with --run (RUN=)", flush=True)
                config.ckpt_path = str(last)

    SpeechCLI(
        Recognizer,
        SpeechDataModule,
        subclass_mode_model=True,
        save_config_callback=RunRecord,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=1,
        parser_class=_parser_class(),
        trainer_defaults={
            "callbacks": [LearningRateMonitor("step"), Speed(), Samples(), Finished()],
            "use_distributed_sampler": False,
            "reload_dataloaders_every_n_epochs": 1,
        },
    )


if __name__ == "__main__":
    main()
