"""Checks of a checkpoint's content before a model is built from it or a run resumed: edited ones are refused."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import isabstract
from typing import Any, get_args

from torch import Tensor

from speechllm_pl.core.moved_settings import where_they_are_now
from speechllm_pl.storage.consolidated import RECORD
from speechllm_pl.storage.digests import DIGESTS, is_there

OF_CHECKPOINT = {
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "SpeechDataModule": dict,
    DIGESTS: dict,
}
"""Types of a checkpoint's entries beside its record and its tensors; any of them may be missing."""

OF_RECORD = {"settings": dict, "precision": str, "languages": list, "longest_seconds": float, "skipped_steps": int}
"""Types of a record's entries beside the stage; all but the settings may be missing."""

OF_BOTH = {"tokenizer": bytes, "encoder": dict}
NEEDED = {"ctc": OF_BOTH, "llm": {**OF_BOTH, "llm": str, "llm_digest": str}}
"""By stage the settings that have no default, and the types that they are recorded as."""

ENCODER_DIGEST = "encoder_digest"
"""Setting that tells the weights that a pretrained encoder began with from others."""

BESIDE_THE_DESCRIPTION = ("tokenizer", "llm_digest", ENCODER_DIGEST)
"""Settings that are no fields of the model's description."""

ONLY_CHOICE = {"encoder": "ConformerConfig", "bridge": "ProjectorConfig"}
"""Class of a part, where an earlier version did not name it."""

NO_SIZES = ("spec_augment.", "alignment_classes")
"""Whole numbers among the settings, or the beginnings of their names, that say nothing about weights."""

TO_GO_ON = ("global_step", "loops", "lr_schedulers")
"""Entries that resuming requires: without them a run would begin again, with trained weights."""

LIKE_A_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "state1", "state2")
"""Optimisers' states as large as their parameter, to which fused kernels write without checking."""


def wrong_record(checkpoint: Mapping[str, Any]) -> str:
    """Describe the first unreadable entry of a checkpoint beside its tensors; empty if there is none."""
    record = checkpoint[RECORD]
    if not isinstance(record, dict):
        return "its record is none"
    stage, settings = record.get("stage"), record.get("settings")
    if not isinstance(stage, str) or stage not in NEEDED:
        return f"its stage is {repr(stage)[:40]}, which is unknown"
    if settings is None:
        return "it has no settings"
    if problem := _of_wrong_type(checkpoint, OF_CHECKPOINT) or _of_wrong_type(record, OF_RECORD):
        return problem
    if not all(isinstance(language, str) for language in record.get("languages", ())):
        return "its languages are no texts"
    if missing := [name for name in NEEDED[stage] if name not in settings]:
        return f"it lacks the setting {missing[0]}"
    return _of_wrong_type(settings, NEEDED[stage])


def wrong_tensors(state: Any) -> str:
    """Describe the first entry among a checkpoint's weights that is not a weight; empty if there is none."""
    if not isinstance(state, dict) or not state:
        return "it has no weights (state_dict)"
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            return f"{name} among its weights is no tensor"
        if not is_there(tensor):
            return f"{name} is said to have {tensor.numel()} values, which are not there"
    return ""


def wrong_settings(config: type, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Describe the first of a checkpoint's settings that cannot describe a model; empty if there is none.

    Args:
        config: dataclass of the description, whose fields tell the types.
        settings: those of a record in which nothing is wrong. Some may be missing: they came later.
        state: the weights.
    """
    largest = max([len(state), *(size for tensor in state.values() for size in tensor.shape)])
    described = {name: value for name, value in settings.items() if name not in BESIDE_THE_DESCRIPTION}
    return next(_faults(described, config, largest), "")


def present_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a record as this version writes them; earlier ones had no choice of encoder and bridge to name."""
    present = where_they_are_now(settings)
    for name, kind in ONLY_CHOICE.items():
        if isinstance(value := present.get(name), dict) and "class_path" not in value:
            present[name] = {"class_path": kind, "init_args": value}
    return present


def is_of_a_version(checkpoint: Mapping[str, Any]) -> bool:
    """Whether it names the version of Lightning that has written it, which Lightning checks first."""
    return re.match(r"\d+(\.\d+)+", str(checkpoint.get("pytorch-lightning_version"))) is not None


def wrong_progress(checkpoint: Mapping[str, Any]) -> str:
    """Describe what prevents a run from resuming from a checkpoint; empty if nothing does.

    Args:
        checkpoint: in whose record nothing is wrong; it has an optimiser's state.
    """
    if missing := [name for name in TO_GO_ON if name not in checkpoint]:
        return f"it lacks {missing[0]}"
    if not isinstance(checkpoint["loops"].get("fit_loop"), dict):
        return "its loops are none of fit"
    if not all(isinstance(each, dict) for each in (*checkpoint["optimizer_states"], *checkpoint["lr_schedulers"])):
        return "its optimizer_states or lr_schedulers are none"
    groups = checkpoint["optimizer_states"][0].get("param_groups")
    if not isinstance(groups, list) or not all(isinstance(group, dict) and "params" in group for group in groups):
        return "its optimizer_states have no param_groups"
    return ""


def wrong_optimizer_state(saved: Mapping[str, Any], parameters: Sequence[Tensor]) -> str:
    """Describe the first part of an optimiser's saved state that does not fit these parameters; empty if all fits."""
    for place, state in saved.get("state", {}).items():
        if place not in range(len(parameters)):
            return f"its optimizer_states have a parameter {place}, which there is not"
        for name in LIKE_A_PARAMETER:
            if name in state and tuple(state[name].shape) != tuple(parameters[place].shape):
                return f"{name} of parameter {place} in its optimizer_states has another shape than the parameter"
    return ""


def _of_wrong_type(found: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    wrong = (name for name, kind in kinds.items() if name in found and not _is_of(found[name], kind))
    return next((f"its {name} cannot be {repr(found[name])[:40]}" for name in wrong), "")


def _faults(settings: Mapping[str, Any], config: Any, largest: int, prefix: str = "") -> Iterator[str]:
    kinds: dict[str, Any] = {field.name: field.type for field in fields(config)}
    for name, value in settings.items():
        if name not in kinds:
            yield f"it has a setting {prefix}{name}, which is unknown"
        elif isabstract(kind := kinds[name]) and isinstance(value, dict):
            yield from _faults_of_choice(value, kind, largest, f"{prefix}{name}.")
        elif is_dataclass(kind := kinds[name]) and isinstance(value, dict):
            yield from _faults(value, kind, largest, f"{prefix}{name}.")
        elif not _is_of(value, kind):
            yield f"its setting {prefix}{name} cannot be {repr(value)[:40]}"
        elif kind is int and not 0 <= value <= largest and not f"{prefix}{name}".startswith(NO_SIZES):
            # each is a tensor's size, the number of blocks, or less
            yield f"its setting {prefix}{name} is {value}, which its weights are not of"


def _faults_of_choice(chosen: Mapping[str, Any], base: Any, largest: int, prefix: str) -> Iterator[str]:
    """Faults of a class and its settings, one of those derived from `base`."""
    name, settings = chosen.get("class_path"), chosen.get("init_args")
    found = [kind for kind in base.__subclasses__() if kind.__name__ == name]
    if not found:
        yield f"its setting {prefix}class_path cannot be {repr(name)[:40]}"
    elif not isinstance(settings, dict):
        yield f"its setting {prefix}init_args cannot be {repr(settings)[:40]}"
    else:
        yield from _faults(settings, found[0], largest, prefix)


def _is_of(value: Any, kind: Any) -> bool:
    kinds = get_args(kind) or (kind,)  # of a union its types, of a Literal its values
    if isinstance(value, str) and value in kinds:
        return True
    return type(value) in kinds or (type(value) is int and float in kinds)
