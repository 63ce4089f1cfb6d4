"""`speechllm average`: one checkpoint whose weights are the mean of several of a run."""

from pathlib import Path
from typing import Any

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoints import RECORD, by_error_rate, by_steps, is_whole, read_checkpoint, write_file
from speechllm_pl.storage.consolidated import OF_WEIGHTS_ALONE


def average(run: str, last: int | None = None, best: int | None = None, output: str | None = None) -> None:
    """Average the weights of a run's checkpoints, which often lowers the error rate a little.

    Args:
        run: folder of the run.
        last: how many of the newest checkpoints.
        best: instead: how many of those with the lowest word error rate on dev.
        output: file to write; default is checkpoints/average.ckpt in the run's folder.

    Raises:
        UserError: not just one of `last` and `best` is given, or the run has fewer checkpoints.
    """
    if (last is None) == (best is None):
        raise UserError("say which checkpoints: --last 5 for the newest, or --best 5 for the lowest error rates on dev")
    folder = Path(run, "checkpoints")
    found = [path for path in (by_error_rate(folder) if last is None else by_steps(folder)[::-1]) if is_whole(path)]
    wanted = last if last is not None else best
    if not wanted or wanted < 1 or len(found) < wanted:
        raise UserError(
            f"{folder} has {len(found)} such checkpoints, and {wanted} were asked for: ask for 1 to {len(found)}, or"
            " train with more of them kept (LastCheckpoints.keep_newest, keep_best)"
        )
    path = Path(output) if output else folder / "average.ckpt"
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
