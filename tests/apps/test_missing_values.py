"""Values that a model's class needs are not removed by a configuration; optional ones may be."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from jsonargparse import Namespace

from speechllm_pl.apps.missing_values import refuse_missing_values
from speechllm_pl.core.errors import UserError


@dataclass
class Group:
    size: int = 1


@dataclass
class Config:
    group: Group = field(default_factory=Group)
    width: int = 2
    limit: int | None = None


class Toy:
    """A class as configurations name one, with the settings of its model in `config_class`."""

    config_class = Config

    def __init__(self, rate: float = 0.1, name: str | None = None, **model: Any):
        pass


def check(**values: Any) -> None:
    refuse_missing_values(Namespace(class_path=f"{__name__}.Toy", init_args=Namespace(**values)))


@pytest.mark.parametrize("name", ["group", "width", "rate"])
def test_null_for_a_needed_value_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"model.init_args.{name} is null: give it values, or leave it out"):
        check(**{name: None})


@pytest.mark.parametrize("value", [False, 3, "x", [1]])
def test_a_single_value_for_a_group_is_named(value: object) -> None:
    with pytest.raises(UserError, match=r"model\.init_args\.group is "):
        check(group=value)


def test_optional_values_may_be_null_and_groups_are_values_of_their_own() -> None:
    check(limit=None, name=None, width=0, rate=0.0, group={"size": 3})
    check(group=Namespace(size=3))
    check(unknown=None)
