"""What is installed: data_prep is run from a clone, and a wheel is without it."""

from pathlib import Path

from setuptools.config.pyprojecttoml import read_configuration

ROOT = Path(__file__).parents[2]


def test_a_wheel_holds_the_recogniser_alone() -> None:
    packages = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in packages} == {"speechllm_pl"}
