"""Changed settings of a resumed run: applied and reported, with every former configuration kept.

docs/running.md has the table of what may change and what may not.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

CHANGED = "changed on resuming: "

TOLD_BY_THE_OPTIMIZER = "model.optimizer."
"""Options that are compared with the checkpoint's optimiser instead, which records what was in force."""

NOT_OF_TRAINING = ("ckpt_path", "run", "trainer.default_root_dir", "trainer.logger.save_dir")
"""Options that say where a run lies and what it resumes from."""

OF_THE_BEGINNING = ("seed_everything", "model.encoder_checkpoint", "model.llm_checkpoint")
"""Options that a resumed run no longer uses."""


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Settings of each parameter group before a schedule or a checkpoint changes them."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def apply_settings(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, settings: list[dict[str, Any]]
) -> Iterator[str]:
    """Replace the settings restored from a checkpoint, and apply the schedule's rate.

    Unchanged settings stay bitwise the same: the rate is computed as the scheduler computes it.

    Args:
        optimizer: optimiser, restored.
        scheduler: its schedule, restored.
        settings: settings as returned by `settings_of`.

    Returns:
        Iterator over the changes, which are complete once it is exhausted.
    """
    names = dict.fromkeys(name for group in settings for name in group)
    for name in names:
        key = "initial_lr" if name == "lr" else name  # the peak; `lr` itself is the schedule's
        former = [_plain(group.get(key)) for group in optimizer.param_groups]
        ours = [_plain(group.get(name)) for group in settings]
        for group, given in zip(optimizer.param_groups, settings, strict=True):
            if name in given and _plain(group.get(key)) != _plain(given[name]):
                group[key] = given[name]
        if former != ours:
            yield f"optimizer.{name} {_each(former)} -> {_each(ours)}"
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    factors = (factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas)
    rates = [peak * factor for peak, factor in zip(scheduler.base_lrs, factors, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _each(values: list[Any]) -> str:
    """The distinct values of the groups, separated by commas."""
    different = [value for place, value in enumerate(values) if value not in values[:place]]
    return ", ".join(map(str, different))


def keep_former(path: Path, text: str) -> None:
    """Write a configuration; a former one that differs is kept beside it as config.1.yaml, config.2.yaml, …"""
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return
        numbers = iter(range(1, 1_000_000))
        kept = next(other for n in numbers if not (other := path.with_suffix(f".{n}{path.suffix}")).exists())
        path.replace(kept)
    path.write_text(text, encoding="utf-8")


def changes(former: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Differences between two configurations, a line each, without the optimiser's settings.

    A class is no change where the former configuration holds its settings alone: earlier versions had no other.
    """
    before, after = dict(by_dotted_name(former)), dict(by_dotted_name(ours))
    groups = {name.rpartition(".")[0] for name in before}
    lines = []
    for name in dict.fromkeys((*before, *after)):
        group, _, last = name.rpartition(".")
        if last == "class_path" and name not in before and group in groups:
            continue
        old, new = before.get(name, "not set"), after.get(name, "not set")
        if old != new and name not in NOT_OF_TRAINING and not name.startswith(TOLD_BY_THE_OPTIMIZER):
            note = " (without effect: it is of a run's beginning)" if name in OF_THE_BEGINNING else ""
            lines.append(f"{name} {_shown(old)} -> {_shown(new)}{note}")
    return lines


def by_dotted_name(settings: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """Settings by their dotted names, as on the command line."""
    if isinstance(settings, dict) and settings:
        inside: Iterable[tuple[Any, Any]] = settings.items()
    elif isinstance(settings, list) and any(isinstance(each, dict) for each in settings):
        inside = enumerate(settings)
    else:
        yield name, settings
        return
    for key, value in inside:
        yield from by_dotted_name(value, name if key == "init_args" else f"{name}.{key}".lstrip("."))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
