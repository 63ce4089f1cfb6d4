"""Check for values that a model's class needs and that a configuration removes."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pkgutil import resolve_name
from types import NoneType
from typing import Any, get_args

from speechllm_pl.core.errors import UserError


def refuse_missing_values(model: Any) -> None:
    """Refuse missing values, which jsonargparse accepts.

    Args:
        model: path and arguments of a class, as parsed by jsonargparse.

    Raises:
        UserError: null is given for a needed value, or a single value for a group of settings.
    """
    kind = resolve_name(model.class_path)
    of_model = {field.name: field.type for field in fields(kind.config_class)}
    of_training = {name: setting.annotation for name, setting in inspect.signature(kind).parameters.items()}
    for name, type_ in (of_training | of_model).items():
        if name not in model.init_args:
            continue
        value, needed = model.init_args[name], is_dataclass(type_)
        none = value is None and NoneType not in get_args(type_)
        if none or (needed and not isinstance(value, Mapping) and not hasattr(value, "__dict__")):
            shown = "null" if value is None else repr(value)
            raise UserError(f"model.init_args.{name} is {shown}: give it values, or leave it out")
