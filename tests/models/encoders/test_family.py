"""Families of pretrained encoders against transformers' own feature extractors, forward passes and CTC heads."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from random_encoders import SAVED, save_granite, save_parakeet, save_wav2vec2_bert
from test_whisper import noise
from torch import nn

from speechllm_pl.core.ctc_tokenizer import ctc_collapse
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.pretrained import PretrainedEncoderConfig
from speechllm_pl.models.features import SpecAugmentConfig

LENGTHS = [16_000, 400, 402, 4_321, 12_000]  # of 401 a bin is all but equal in both frames: its variance is rounding
ADAPTERS = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 16}
KINDS = {name: save for name, save in SAVED.items() if name != "whisper"} | {
    "wav2vec2-bert-adapters": partial(save_wav2vec2_bert, kind="Wav2Vec2BertModel", **ADAPTERS),
}
CTC_KINDS = [name for name in KINDS if name.endswith("-ctc")]
LEAST = {"wav2vec2-bert": 560, "parakeet_ctc": 320, "granite_speech": 320}
"""Samples of the shortest input of a model type, where it is more than one frame's: silence follows what is shorter."""


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=CTC_KINDS)
def ctc_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED[request.param](tmp_path_factory.mktemp(request.param))


def alone(waveforms: Padded, row: int, folder: Path) -> torch.Tensor:
    """What the model of transformers reads of an utterance: its own features of it, none of them masked."""
    samples = waveforms.values[row, : int(waveforms.lengths[row])]
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    least = LEAST.get(kind, 0)
    samples = nn.functional.pad(samples, (0, max(0, least - len(samples))))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    arguments = {} if kind == "granite_speech" else {"sampling_rate": 16_000, "return_tensors": "pt"}
    extracted = extractor(samples.numpy(), **arguments)
    features = extracted[extractor.model_input_names[0]]
    return features[:, : int(extracted["attention_mask"].sum())] if "attention_mask" in extracted else features


def test_frames_of_a_batch_are_those_of_transformers_for_each_utterance_alone(folder: Path) -> None:
    config = PretrainedEncoderConfig(name=str(folder), head="new")
    family = config.family(str(folder), None, with_head=False).eval()
    theirs = transformers.AutoModel.from_pretrained(folder)
    theirs = theirs.encoder if theirs.config.model_type in ("parakeet_ctc", "granite_speech") else theirs
    waveforms = noise(LENGTHS)
    found, frames = family(waveforms, nn.Identity())
    for row in range(len(LENGTHS)):
        expected = theirs(alone(waveforms, row, folder)).last_hidden_state[0]
        assert len(expected) == frames[row]
        torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-4, rtol=1e-3)


def test_logits_are_those_of_the_encoders_own_head_with_the_blank_first(ctc_folder: Path) -> None:
    config = PretrainedEncoderConfig(name=str(ctc_folder))
    tokenizer = config.own_tokenizer()
    assert tokenizer is not None
    model = config.build(SpecAugmentConfig(), tokenizer.vocab_size).eval()
    waveforms = noise([8_000])
    theirs = transformers.AutoModelForCTC.from_pretrained(ctc_folder)
    expected = theirs(alone(waveforms, 0, ctc_folder)).logits
    blank = theirs.config.pad_token_id
    order = [blank, *(number for number in range(theirs.config.vocab_size) if number != blank)]
    logits = model(waveforms).values
    torch.testing.assert_close(logits, expected[:, :, order], atol=1e-4, rtol=1e-3)
    processor = transformers.AutoTokenizer.from_pretrained(ctc_folder)
    text = tokenizer.decode(ctc_collapse(logits[0].argmax(-1).tolist()))
    assert text == processor.decode(expected[0].argmax(-1), skip_special_tokens=True).lower().replace("<unk>", "")
    assert text
    written = "The one isn't"
    cased = written.upper() if "E" in processor.get_vocab() else written.lower()
    assert [order[label] for label in tokenizer.encode(written)] == processor(cased).input_ids
    assert tokenizer.decode(tokenizer.encode(written)) == written.lower()


def frames(folder: Path) -> torch.Tensor:
    family = PretrainedEncoderConfig(name=str(folder), head="new").family(str(folder), None, with_head=False)
    return family.eval()(noise(LENGTHS), nn.Identity()).values


@pytest.mark.parametrize(
    "save",
    [
        save_granite,
        partial(save_parakeet, kind="ParakeetForTDT", decoder_hidden_size=8, num_decoder_layers=1, blank_token_id=5),
    ],
    ids=["granite", "parakeet-tdt"],
)
def test_an_encoder_of_a_larger_model_is_that_which_is_saved_alone(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    whole, alone = save(tmp_path / "whole"), tmp_path / "alone"
    transformers.AutoModel.from_pretrained(whole).encoder.save_pretrained(alone)
    shutil.copy(whole / "preprocessor_config.json", alone)
    assert torch.equal(frames(whole), frames(alone))


def test_features_that_are_set_otherwise_are_refused(tmp_path: Path) -> None:
    folder = SAVED["wav2vec2-bert"](tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"stride": 3}))
    with pytest.raises(UserError, match=r"stride of its features is 3, and only 2 is known"):
        PretrainedEncoderConfig(name=str(folder)).build(SpecAugmentConfig(), 7)


def test_a_new_head_can_take_the_place_of_the_own_one(ctc_folder: Path) -> None:
    config = PretrainedEncoderConfig(name=str(ctc_folder), head="new")
    assert config.own_tokenizer() is None
    assert config.build(SpecAugmentConfig(), 7).head.out_features == 7
