"""The model of stage 1, and what every encoder keeps to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_encoders import SAVED

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.padded import Padded
from speechllm_pl.models import encoders
from speechllm_pl.models.config import CtcConfig
from speechllm_pl.models.ctc import CtcModel, EncoderConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.encoders.pretrained import PretrainedEncoderConfig
from speechllm_pl.models.features import SpecAugmentConfig

SMALL: dict[str, Callable[[Path], EncoderConfig]] = {
    "ConformerConfig": lambda _: ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64, kernel_size=5),
    **{
        f"PretrainedEncoderConfig-{family}": lambda folder, save=save: PretrainedEncoderConfig(name=str(save(folder)))
        for family, save in SAVED.items()
    },
}
LENGTHS = [1, 300, 400, 1_000, 8_000, 12_001, 16_000]


def test_every_encoder_is_tested() -> None:
    assert {name.partition("-")[0] for name in SMALL} == set(encoders.__all__)
    assert {name.partition("-")[2] for name in SMALL} == {"", *SAVED}


@pytest.fixture(params=SMALL, scope="module")
def described(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    return SMALL[request.param](tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(described: EncoderConfig) -> CtcModel:
    torch.manual_seed(0)
    return described.build(SpecAugmentConfig(), classes_of(described)).eval()


def classes_of(described: EncoderConfig) -> int:
    own = described.own_tokenizer()
    return own.vocab_size if own else 20


def waveforms() -> Padded:
    torch.manual_seed(0)
    lengths = torch.tensor(LENGTHS)
    real = torch.arange(max(LENGTHS))[None] < lengths[:, None]
    return Padded(0.1 * torch.randn(len(LENGTHS), max(LENGTHS)) * real, lengths)


def test_a_description_is_frozen_and_of_plain_values(described: EncoderConfig) -> None:
    values: dict[str, Any] = vars(described)
    assert all(isinstance(value, str | int | float | bool | None) for value in values.values())
    assert hash(described) == hash(type(described)(**values))


def test_the_number_of_frames_is_known_without_the_model(described: EncoderConfig, model: CtcModel) -> None:
    samples = waveforms()
    encoded, frames = model.encode(samples)
    assert encoded.shape == (len(LENGTHS), int(frames.max()), model.dim)
    assert frames.tolist() == described.frame_lengths(samples.lengths).tolist()
    assert model.head(encoded).shape[2] == classes_of(described)


def test_a_frames_duration_is_that_of_the_model(described: EncoderConfig, model: CtcModel) -> None:
    hour = 3_600 * SAMPLING_RATE
    assert described.frame_lengths(torch.tensor([hour])).item() * model.seconds_per_frame == pytest.approx(
        3_600, rel=1e-3
    )


def test_padding_never_leaks_and_frames_beyond_a_length_are_zero(model: CtcModel) -> None:
    samples, lengths = waveforms()
    together, frames = model.encode(Padded(samples, lengths))
    for row, (length, count) in enumerate(zip(LENGTHS, frames.tolist(), strict=True)):
        alone, own = model.encode(Padded(samples[row : row + 1, :length], lengths[row : row + 1]))
        assert own.tolist() == [count]
        torch.testing.assert_close(together[row, :count], alone[0, :count], atol=1e-5, rtol=1e-4)
        assert not together[row, count:].any()


def test_layers_are_parts_of_the_model_and_the_spectrum_is_hidden_in_training_alone(model: CtcModel) -> None:
    names = {id(module) for module in model.modules()}
    assert len(model.layers)
    assert all(id(layer) in names for layer in model.layers)
    samples = waveforms()
    assert torch.equal(model.encode(samples)[0], model.encode(samples)[0])
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert not torch.equal(model.encode(samples)[0], model.encode(samples)[0])


def test_logits_are_the_fp32_product_of_the_frames_where_autocast_computes_in_bf16(
    small_encoder: ConformerConfig,
) -> None:
    torch.manual_seed(0)
    model = CtcConfig(encoder=small_encoder).build_speech(20).eval()
    waveforms = Padded(0.1 * torch.randn(2, 12_000), torch.tensor([12_000, 7_000]))
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(waveforms)
        encoded, _ = model.encode(waveforms)
        assert (encoded @ encoded.mT).dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    expected = encoded.double() @ model.head.weight.double().T + model.head.bias.double()
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)
