"""Encoders of waveforms against transformers' own feature extractor, forward pass and CTC head."""

from pathlib import Path

import pytest
import torch
import transformers
from random_encoders import LETTERS, SAVED
from test_whisper import noise
from torch import nn

from speechllm_pl.core.ctc_tokenizer import ctc_collapse
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.pretrained import PretrainedEncoderConfig
from speechllm_pl.models.features import SpecAugmentConfig

LENGTHS = [16_000, 400, 401, 4_321, 12_000]
KINDS = [name for name in SAVED if name != "whisper"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED["wav2vec2-ctc"](tmp_path_factory.mktemp("ctc"))


def alone(waveforms: Padded, row: int) -> torch.Tensor:
    return waveforms.values[row, : int(waveforms.lengths[row])]


def test_frames_of_a_batch_are_those_of_transformers_for_each_utterance_alone(folder: Path) -> None:
    config = PretrainedEncoderConfig(name=str(folder), head="new")
    family = config.family(str(folder), None, with_head=False).eval()
    theirs = transformers.AutoModel.from_pretrained(folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    waveforms = noise(LENGTHS)
    found, frames = family(waveforms, nn.Identity())
    for row in range(len(LENGTHS)):
        extracted = extractor(alone(waveforms, row).numpy(), sampling_rate=16_000, return_tensors="pt")
        expected = theirs(extracted["input_values"]).last_hidden_state[0]
        assert len(expected) == frames[row]
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-4, rtol=1e-3)


def test_logits_are_those_of_the_encoders_own_head_with_the_blank_first(ctc_folder: Path) -> None:
    config = PretrainedEncoderConfig(name=str(ctc_folder))
    tokenizer = config.own_tokenizer()
    assert tokenizer is not None
    model = config.build(SpecAugmentConfig(), tokenizer.vocab_size).eval()
    waveforms = noise([8_000])
    theirs = transformers.AutoModelForCTC.from_pretrained(ctc_folder)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(ctc_folder)
    extracted = extractor(alone(waveforms, 0).numpy(), sampling_rate=16_000, return_tensors="pt")
    expected = theirs(extracted["input_values"]).logits
    blank = LETTERS.index("<pad>")
    order = [blank, *(number for number in range(len(LETTERS)) if number != blank)]
    logits = model(waveforms).values
    torch.testing.assert_close(logits, expected[:, :, order], atol=1e-4, rtol=1e-3)
    processor = transformers.Wav2Vec2CTCTokenizer.from_pretrained(ctc_folder)
    text = tokenizer.decode(ctc_collapse(logits[0].argmax(-1).tolist()))
    assert text == processor.decode(expected[0].argmax(-1), skip_special_tokens=True).lower().replace("<unk>", "")
    assert text


def test_a_new_head_can_take_the_place_of_the_own_one(ctc_folder: Path) -> None:
    config = PretrainedEncoderConfig(name=str(ctc_folder), head="new")
    assert config.own_tokenizer() is None
    assert config.build(SpecAugmentConfig(), 7).head.out_features == 7
