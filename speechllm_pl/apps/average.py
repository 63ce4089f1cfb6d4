"""`speechllm average`: one checkpoint whose weights are the mean of several of a run."""

from pathlib import Path
from typing import Any

from speechllm_pl.apps.program_options import AverageOptions
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoints import RECORD, by_error_rate, by_steps, is_whole, read_checkpoint, write_file
from speechllm_pl.storage.consolidated import OF_WEIGHTS_ALONE


def average(options: AverageOptions) -> None:
    """Average the weights of a run's checkpoints, which often lowers the error rate a little.

    Raises:
        UserError: the run has fewer checkpoints.
    """
    folder = Path(options.run, "checkpoints")
    of_kind = by_error_rate(folder) if options.last is None else by_steps(folder)[::-1]
    found = [path for path in of_kind if is_whole(path)]
    wanted = options.best if options.last is None else options.last
    if not wanted or wanted < 1 or len(found) < wanted:
        raise UserError(
            f"{folder} has {len(found)} such checkpoints, and {wanted} were asked for: ask for 1 to {len(found)}, or"
            " train with more of them kept (LastCheckpoints.keep_newest, keep_best)"
        )
    path = Path(options.output) if options.output else folder / "average.ckpt"
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file with --output")
    write_file(mean(found[:wanted]), path)
    print(f"{path}: the mean of {', '.join(each.name for each in found[:wanted])}")


def mean(paths: list[Path]) -> dict[str, Any]:
    """Checkpoint without optimiser: the record of the first, and the mean of all tensors, computed in float64."""
    first = read_checkpoint(paths[0])
    total = {name: value.double() for name, value in first["state_dict"].items()}
    for path in paths[1:]:
        state = read_checkpoint(path, stage=first[RECORD]["stage"])["state_dict"]
        if set(state) != set(total):
            raise UserError(f"{path} has other weights than {paths[0]}: they are not of one run")
        for name, value in state.items():
            total[name] += value
    kinds = {name: value.dtype for name, value in first["state_dict"].items()}
    averaged = {name: (value / len(paths)).to(kinds[name]) for name, value in total.items()}
    return {**OF_WEIGHTS_ALONE, RECORD: first[RECORD], "state_dict": averaged}
