"""Configurations that would explode or overflow are one line that names the file; aliases as such are fine."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from speechllm_pl.analysis.run.run_folder import manifest_of_tests
from speechllm_pl.configuration.bounded_yaml import DEEPEST, MOST_CHARACTERS, parsed_configuration, read_configuration
from speechllm_pl.core.errors import UserError


def doubled(times: int, start: str, each: str) -> str:
    """Each line holds the one before twice."""
    lines = [f"m0: &m0 {start}"]
    return "\n".join(lines + [each.format(new=n, old=n - 1) for n in range(1, times + 1)]) + "\n"


UNBOUNDED = {
    "lists": doubled(40, "[x]", "m{new}: &m{new} [*m{old}, *m{old}]"),
    "keys": doubled(40, "{x: 1}", "m{new}: &m{new} {{a: *m{old}, b: *m{old}}}"),
    "merged keys": doubled(40, "{x: 1}", "m{new}: &m{new} {{<<: [*m{old}, *m{old}], k: 1}}"),
    "a long text, often": f"a: &a {'x' * 10_000}\nb: [{'*a, ' * 10}]\n",
    "what contains itself": "data: &data\n  root: *data\n",
    "deep lists": f"a: {'[' * 100_000}",
    "deep keys": "data: " + "{a: " * 1000 + "1" + "}" * 1000,
}


@pytest.mark.parametrize("kind", UNBOUNDED)
@pytest.mark.parametrize("read", [read_configuration, lambda path: manifest_of_tests(path.parent)])
def test_what_has_no_bounds_is_one_line_that_names_the_file(tmp_path: Path, kind: str, read: Callable) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(UNBOUNDED[kind])
    with pytest.raises(UserError, match=f"{path} cannot be read: its aliases|{path} cannot be read: it has more than"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"data: [\n", b"data: \x80\n", b"data: *nowhere\n", b"- 1\n", b""], ids=lambda content: repr(content)
)
def test_what_is_no_configuration_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"configuration {path} cannot be read: ") as error:
        read_configuration(path)
    assert "\n" not in str(error.value)


def test_aliases_within_bounds_and_long_files_without_are_read() -> None:
    assert parsed_configuration("a: &a {x: 1e-3}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n") == {
        "a": {"x": 0.001},
        "b": [{"x": 0.001}, {"x": 0.001}],
        "c": {"x": 0.001, "y": 2},
    }
    assert parsed_configuration(f"a: {'x' * 2 * MOST_CHARACTERS}\n") == {"a": "x" * 2 * MOST_CHARACTERS}
    levels = DEEPEST - 1  # and the one of the whole
    parsed_configuration("a: " + "[" * levels + "]" * levels)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("speechllm_pl.training.optimizers.MuonAdamW", "speechllm_pl.optim.muon_adamw.MuonAdamW"),
        ("speechllm_pl.training.schedules.OneCycle", "speechllm_pl.optim.schedules.OneCycle"),
    ],
)
def test_classes_are_found_where_earlier_configurations_had_them(former: str, present: str) -> None:
    assert parsed_configuration(f"model: {{optimizer: {{class_path: {former}}}}}") == {
        "model": {"optimizer": {"class_path": present}}
    }
    module, _, name = present.rpartition(".")
    assert hasattr(importlib.import_module(module), name)
