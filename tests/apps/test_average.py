"""Averages of checkpoints, against torch's mean; what is no average of one run is refused."""

from pathlib import Path

import pytest
import torch

from speechllm_pl.apps.average import average, mean
from speechllm_pl.apps.program_options import AverageOptions
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoints import RECORD


@pytest.fixture
def run(untrained_ctc: Path, tmp_path: Path) -> Path:
    """A run of three checkpoints whose weights are random."""
    (tmp_path / "checkpoints").mkdir()
    checkpoint = torch.load(untrained_ctc, weights_only=True)
    for step in (1, 2, 3):
        torch.manual_seed(step)
        state = {name: torch.randn_like(value) for name, value in checkpoint["state_dict"].items()}
        torch.save(checkpoint | {"state_dict": state}, tmp_path / "checkpoints" / f"step={step:08}.ckpt")
    return tmp_path


def paths_of(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step=*.ckpt"))


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_weights_are_the_mean_in_their_own_type_and_the_record_is_the_first_ones(run: Path) -> None:
    found, states = mean(paths_of(run)), [state_of(path) for path in paths_of(run)]
    for name, value in found["state_dict"].items():
        expected = torch.stack([state[name] for state in states]).double().mean(0).to(states[0][name].dtype)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert set(found["state_dict"]) == set(states[0])
    assert found[RECORD] == torch.load(paths_of(run)[0], weights_only=True)[RECORD]
    assert found["optimizer_states"] == []


def test_the_newest_are_taken_and_the_file_is_in_the_run_folder(run: Path, capsys: pytest.CaptureFixture) -> None:
    average(AverageOptions(run=str(run), last=2))
    first, second, third = map(state_of, paths_of(run))
    found = state_of(run / "checkpoints" / "average.ckpt")
    name = max(found, key=lambda name: found[name].numel())
    torch.testing.assert_close(found[name], (second[name] + third[name]) / 2)
    assert not torch.equal(found[name], (first[name] + third[name]) / 2)
    assert "the mean of step=00000003.ckpt, step=00000002.ckpt" in capsys.readouterr().out


def test_weights_of_other_names_are_not_of_one_run(run: Path) -> None:
    path = paths_of(run)[1]
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["more"] = torch.zeros(1)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=rf"{path} has other weights than"):
        mean(paths_of(run))


@pytest.mark.parametrize("last", [0, -1, 4])
def test_more_than_there_are_is_refused_with_their_number(run: Path, last: int) -> None:
    with pytest.raises(UserError, match=f"has 3 such checkpoints, and {last} were asked for: ask for 1 to 3"):
        average(AverageOptions(run=str(run), last=last))


def test_a_folder_is_no_file_to_write(run: Path) -> None:
    with pytest.raises(UserError, match="is a folder: give a file with --output"):
        average(AverageOptions(run=str(run), last=1, output=str(run)))
