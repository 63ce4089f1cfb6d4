"""Tiny pretrained encoders with random weights, in folders as transformers saves them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers

WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 80,
    "max_source_positions": 60,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def save_whisper(folder: Path, **settings: int) -> Path:
    """A Whisper whose positions reach 1.2 s."""
    torch.manual_seed(1)
    transformers.WhisperModel(transformers.WhisperConfig(**WHISPER | settings)).half().save_pretrained(folder)
    return folder


WAVEFORM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "initializer_range": 0.2,
    "mask_time_prob": 0.05,
    "vocab_size": 32,
    "pad_token_id": 5,
}
LETTERS = ["<s>", "</s>", "<unk>", "|", "E", "<pad>", *"TAONIHSRDLUMWCFGYPBVKXJQZ'"]
"""The vocabulary of CTC heads: the blank is the sixth."""


def save_waveform(folder: Path, kind: str, **settings: object) -> Path:
    """A model that reads waveforms, with a frame every 20 ms; `kind` is its class in transformers."""
    torch.manual_seed(1)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**WAVEFORM | settings))
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:  # as after training
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=kind != "WavLMModel").save_pretrained(folder)
    if kind.endswith("ForCTC"):
        (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(LETTERS)}))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folder


SAVED: dict[str, Callable[[Path], Path]] = {
    "whisper": save_whisper,
    "wav2vec2": partial(save_waveform, kind="Wav2Vec2Model"),
    "wav2vec2-large": partial(
        save_waveform, kind="Wav2Vec2Model", feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    ),
    "hubert": partial(save_waveform, kind="HubertModel"),
    "wavlm": partial(save_waveform, kind="WavLMModel"),
    "wav2vec2-ctc": partial(save_waveform, kind="Wav2Vec2ForCTC"),
    "hubert-ctc": partial(save_waveform, kind="HubertForCTC", feat_extract_norm="layer"),
}
"""Functions that save an encoder of each family."""
