"""The `speechllm` command: choice of the program, and exit statuses.

Torch, Lightning and transformers take seconds to import: only the chosen program imports them.
"""

import os
import sys
import time
import traceback
from importlib import import_module
from typing import Any, NoReturn

from speechllm_pl.apps import program_options
from speechllm_pl.apps.messages import nearest, quieten
from speechllm_pl.core.errors import LOST, Stopped, UserError, printable, user_error
from speechllm_pl.core.moved_settings import MOVED

TRAINER_COMMANDS = {
    "fit": "Train a stage, or resume its run.",
    "validate": "Score a trained stage on dev.",
    "test": "Score a trained stage on test.",
    "predict": "Write what a trained stage recognises.",
}
"""Lightning's commands, with options of the model, the data and the trainer."""

OPTIONS = {
    "evaluate": program_options.EvaluateOptions,
    "transcribe": program_options.TranscribeOptions,
    "compare": program_options.CompareOptions,
    "report": program_options.ReportOptions,
    "data report": program_options.DataReportOptions,
    "plan": program_options.PlanOptions,
    "fetch": program_options.FetchOptions,
    "average": program_options.AverageOptions,
    "consolidate": program_options.ConsolidateOptions,
}
"""Programs with their options, whose docstrings are the help. Each is a function in a module of its name."""

PROGRAMS = {
    "run": "Prepare data, train, evaluate or run a whole experiment: print the plain command lines, and run them.",
    **{name: (kind.__doc__ or "").splitlines()[0] for name, kind in OPTIONS.items()},
}
OF_FIT = ("plan", "fetch")
"""Programs that take a configuration of `fit` besides their own options."""

COMMANDS = TRAINER_COMMANDS | PROGRAMS
MOVED_OPTIONS = {f"model.{former}": f"model.{group}.{name}" for former, (group, name) in MOVED.items()}
"""Present names of options of the models, by those of earlier versions."""
CHOSEN_NAMES = "data.train."
"""Start of options whose names go on with a name of the user's."""


def main() -> None:
    """Run a command.

    Bad input ends with one line and status 2, a signal with 128 plus its number and everything saved. If several
    processes work together, the one that fails ends them all and names its rank.
    """
    quieten()
    try:
        run_command(with_underscores(sys.argv[1:]))
    except Exception as error:
        _failed(error)
    except KeyboardInterrupt as interruption:
        _interrupted(*interruption.args)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's way of passing it on
            _interrupted()
        raise


def with_underscores(arguments: list[str]) -> list[str]:
    """Replace `-` by `_` in the names of options, `--max-wer=a-b` → `--max_wer=a-b`, and names of earlier versions.

    The names that a user has chosen stay, those of the sources of training data: `--data.train.mls-de x`.
    """
    if "--" in arguments:
        end = arguments.index("--")
        return [*with_underscores(arguments[:end]), *arguments[end:]]
    return [_with_underscores(argument) if argument.startswith("--") else argument for argument in arguments]


def _with_underscores(option: str) -> str:
    name, equals, value = option.removeprefix("--").partition("=")
    name, chosen, source = name.partition(CHOSEN_NAMES)
    name = name.replace("-", "_")
    return f"--{MOVED_OPTIONS.get(name, name)}{chosen}{source}{equals}{value}"


def run_command(arguments: list[str]) -> None:
    """Run the program named by the first one or two arguments; without any, list all programs.

    Raises:
        UserError: the program does not exist.
    """
    command, named = " ".join(arguments[:1]), " ".join(arguments[:2])
    group = {name: told for name, told in PROGRAMS.items() if name.startswith(f"{command} ")}
    if command in ("", "-h", "--help"):
        usage, more = "usage: speechllm COMMAND [OPTIONS]", "`speechllm COMMAND --help` lists its options."
        print(usage, _listed(COMMANDS), more, sep="\n\n")
    elif command in TRAINER_COMMANDS or command.startswith("-"):
        sys.argv[1:] = arguments  # where Lightning looks; the ranks that it starts run the file that comes first
        import_module("speechllm_pl.apps.trainer_cli").run_trainer()
    elif program := next((name for name in (named, command) if name in PROGRAMS), None):
        _run_program(program, arguments[len(program.split()) :])
    elif group and (named == command or arguments[1].startswith("-")):
        print(_listed(group))
    else:
        raise _unknown(named if group else command, group or COMMANDS)


def _listed(commands: dict[str, str]) -> str:
    return "\n".join(["commands:", *(f"    {name:<19} {told}" for name, told in commands.items())])


def _unknown(name: str, known: dict[str, str]) -> UserError:
    return UserError(f"there is no command {name}.{nearest(name, known)} Commands: {', '.join(known)}")


def _run_program(name: str, arguments: list[str]) -> None:
    """Run a program; it is imported when its options are parsed, since that may take seconds."""
    if name == "run":
        import_module("speechllm_pl.apps.run").run(arguments)
        return
    parsed = import_module("speechllm_pl.apps.option_parser").parsed
    options, rest = parsed(name, OPTIONS[name], arguments, others=name in OF_FIT)
    function = name.replace(" ", "_")
    program = getattr(import_module(f"speechllm_pl.apps.{function}"), function)
    if name in OF_FIT:
        program(options, import_module("speechllm_pl.apps.trainer_cli").fit_configuration(rest))
    else:
        program(options)


def _failed(error: Exception) -> NoReturn:
    """Report an error, if this process is the one to report it, and exit."""
    if isinstance(error, Stopped):
        _stopped(error)
    message = user_error(error)
    if message is not None:
        print(f"error: {_rank()}{printable(message)}", file=sys.stderr)
        _end(2)
    if _processes() == 1:
        raise error
    if LOST.search(str(error)):
        time.sleep(10)  # in which the launcher ends this process too; the message to read is the other's
        print(f"{_rank()}perhaps another rank is gone (see its message): {error!r}", file=sys.stderr)
    else:
        print(f"{_rank()}{traceback.format_exc()}", file=sys.stderr)
    _end(1)


def _stopped(stop: Stopped) -> NoReturn:
    first = not _rank() or _rank() == "rank 0: "
    if first:
        print(f"{stop}, and saved: run the same command again to continue", file=sys.stderr)
    _end(stop.status if first else 0)  # Lightning would take another status for a crash


def _interrupted(told: str = "run the same command again") -> NoReturn:
    print(f"interrupted: {told}", file=sys.stderr)
    sys.exit(130)


def _distributed() -> Any:
    """`torch.distributed` if this process is one of several, else None; without importing torch."""
    torch_distributed: Any = sys.modules.get("torch.distributed")
    return torch_distributed if torch_distributed and torch_distributed.is_initialized() else None


def _processes() -> int:
    return distributed.get_world_size() if (distributed := _distributed()) else 1


def _rank() -> str:
    """Prefix such as `rank 3: ` if several processes work together, else empty."""
    return f"rank {_distributed().get_rank()}: " if _processes() > 1 else ""


def _end(status: int) -> NoReturn:
    """Exit; among several processes skip torch's shutdown, which would wait for the others."""
    if _processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
