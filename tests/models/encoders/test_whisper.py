"""Whisper's encoder against transformers' own feature extractor and forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from random_encoders import save_whisper
from torch import nn

from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.whisper import Whisper, WhisperFeatures

LENGTHS = [16_000, 1, 159, 160, 161, 4_321, 12_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper"))


def noise(lengths: list[int]) -> Padded:
    torch.manual_seed(0)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    level = torch.linspace(0, 0.3, max(lengths))  # so that its loudest part lies at the end
    return Padded(level * torch.randn(len(lengths), max(lengths)) * real, torch.tensor(lengths))


def test_features_are_those_of_transformers_without_the_padding_to_30_s() -> None:
    waveforms = noise(LENGTHS)
    found, frames = WhisperFeatures(80)(waveforms)
    extractor = transformers.WhisperFeatureExtractor()
    for row, length in enumerate(LENGTHS):
        samples = waveforms.values[row, :length].numpy()
        extracted = extractor(samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
        count = int(extracted["attention_mask"].sum())
        assert frames[row] == count
        np.testing.assert_allclose(found[row, :count], extracted["input_features"][0, :, :count].T, atol=2e-5)
        assert not found[row, count:].any()


def test_frames_of_a_full_window_are_those_of_transformers(folder: Path) -> None:
    family = Whisper(str(folder), None, with_head=False)
    waveforms = noise([120 * 160])
    features, _ = family.features(waveforms)
    theirs = transformers.WhisperModel.from_pretrained(folder, dtype=torch.float32).get_encoder()
    expected = theirs(features.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(family(waveforms, nn.Identity()).values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", [3, 17, 40])
def test_positions_are_cut_to_the_length_at_hand(folder: Path, positions: int) -> None:
    family = Whisper(str(folder), None, with_head=False)
    waveforms = noise([2 * positions * 160])
    features, _ = family.features(waveforms)
    config = transformers.WhisperConfig(**family.encoder.config.to_dict() | {"max_source_positions": positions})
    theirs = transformers.WhisperModel(config).get_encoder().eval()
    state = family.encoder.state_dict()
    theirs.load_state_dict(state | {"embed_positions.weight": state["embed_positions.weight"][:positions]})
    expected = theirs(features.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(family(waveforms, nn.Identity()).values, expected, atol=1e-5, rtol=1e-4)


def test_what_is_longer_than_the_positions_is_heard_in_windows_of_its_own(folder: Path) -> None:
    family = Whisper(str(folder), None, with_head=False)
    length = 130 * 160 * 2  # 130 frames: two windows of 60, and ten
    waveforms = noise([length, 9_000])
    frames, lengths = family(waveforms, nn.Identity())
    assert lengths.tolist() == [130, 29]
    features, _ = family.features(waveforms)
    x = torch.nn.functional.gelu(family.encoder.conv1(features[:1].transpose(1, 2)))
    x = torch.nn.functional.gelu(family.encoder.conv2(x)).transpose(1, 2)
    last = x[:, 120:] + family.encoder.embed_positions.weight[:10]
    for layer in family.encoder.layers:
        last = layer(last, None)
    torch.testing.assert_close(frames[:1, 120:], family.encoder.layer_norm(last), atol=1e-5, rtol=1e-4)
    alone, _ = family(Padded(waveforms.values[1:, :9_000], waveforms.lengths[1:]), nn.Identity())
    torch.testing.assert_close(frames[1, :29], alone[0], atol=1e-5, rtol=1e-4)


def test_padding_to_30_s_changes_the_frames(folder: Path) -> None:
    """Positions are cut: frames differ from those that attend to silence as well."""
    family = Whisper(str(folder), None, with_head=False)
    waveforms = noise([16_000])
    silent = Padded(nn.functional.pad(waveforms.values, (0, 3_200)), waveforms.lengths + 3_200)
    cut, padded = (family(given, nn.Identity()).values for given in (waveforms, silent))
    assert (cut[0, :40] - padded[0, :40]).abs().max() > 1e-3
