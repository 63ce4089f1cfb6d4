"""Settings of a data module that are refused: impossible by themselves, or together."""

from collections.abc import Mapping, Sequence
from typing import Any

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import Augmentation, Concatenate


def refuse_impossible(settings: Mapping[str, Any], augmentations: Sequence[Augmentation]) -> None:
    """Raise a UserError where a setting has a value that it cannot have, or two settings exclude each other.

    Args:
        settings: values by name.
        augmentations: those of training utterances.
    """
    workers, dev = settings["num_workers"], settings["val_utterances"]
    allowed = {
        "seed": (settings["seed"] >= 0, "0 or more"),
        "val_utterances": (dev is None or dev >= 1, "1 or more, or null for all of dev"),
        "balance": (0 <= settings["balance"] <= 1, "0 (languages equally long) to 1 (as they are)"),
        "lanes": (1 <= settings["lanes"] < 2**16, "1 to 65535"),
        "shuffle_buffer": (settings["shuffle_buffer"] >= 0, "0 or more"),
        "num_workers": (isinstance(workers, str) or workers >= 0, "0 or more, or auto"),
        "timeout_seconds": (settings["timeout_seconds"] > 0, "more than 0"),
        "max_skipped_share": (0 <= settings["max_skipped_share"] <= 1, "a share, 0 to 1"),
    }
    for name, (possible, values) in allowed.items():
        if not possible:
            raise UserError(f"data.{name} = {settings[name]}: give {values}")
    for augmentation in augmentations:
        if isinstance(augmentation, Concatenate) and augmentation.max_seconds > settings["max_seconds"]:
            raise UserError(
                f"Concatenate in data.augmentations: max_seconds {augmentation.max_seconds} is more than"
                f" data.max_seconds = {settings['max_seconds']}, which the memory is planned for: lower it"
            )
    if settings["cache_frames"] and augmentations:
        raise UserError(
            f"data.cache_frames keeps the frames of each recording as it is, and {type(augmentations[0]).__name__} in"
            " data.augmentations changes it each time: leave one of them out (without AUGMENT=; SpecAugment can stay)"
        )
    if settings["cache_frames"] and settings["allow_command_sources"]:
        raise UserError(
            "data.cache_frames knows by their files whether recordings have changed, and data.allow_command_sources"
            " takes audio that is no file: leave one of them out"
        )
