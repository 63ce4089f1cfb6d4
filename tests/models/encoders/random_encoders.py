"""Tiny pretrained encoders with random weights, in folders as transformers saves them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

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
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=kind != "WavLMModel")
    return save_model(folder, kind, extractor, save_letters, WAVEFORM | settings)


def save_model(
    folder: Path, kind: str, extractor: Any, save_vocabulary: Callable[[Path], None], settings: dict[str, Any]
) -> Path:
    """Save a model of a class of transformers, its feature extractor, and the vocabulary of its CTC head."""
    torch.manual_seed(1)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**settings))
    for name, parameter in model.named_parameters():
        if "norm" in name:  # as after training
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 2.0)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    if kind.endswith("ForCTC"):
        save_vocabulary(folder)
    return folder


def save_letters(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(LETTERS)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)


WAV2VEC2_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 3,
    "initializer_range": 0.2,
    "final_dropout": 0.0,
    "conformer_conv_dropout": 0.0,
    "layerdrop": 0.5,
    "vocab_size": 32,
    "pad_token_id": 5,
}


def save_wav2vec2_bert(folder: Path, kind: str, **settings: object) -> Path:
    """A wav2vec2-bert, which reads pairs of feature frames; `kind` is its class in transformers."""
    extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1)
    return save_model(folder, kind, extractor, save_letters, WAV2VEC2_BERT | settings)


PARAKEET = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_kernel_size": 5,
    "subsampling_factor": 4,
    "subsampling_conv_channels": 8,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.5,
    "initializer_range": 0.2,
}
MERGES = [("▁", "t"), ("h", "e"), ("o", "n"), ("▁", "on")]
SUBWORDS = ["<unk>", "▁", *"etaonihsrdlumwcfgypbvkxjqz'", *map("".join, MERGES), "<pad>"]
"""The vocabulary of Parakeet's CTC head: the blank is the last."""


def save_parakeet(folder: Path, kind: str, **settings: object) -> Path:
    """A Parakeet with a frame every 40 ms; `kind` is its class in transformers."""
    settings |= {"vocab_size": len(SUBWORDS), "pad_token_id": len(SUBWORDS) - 1, "encoder_config": PARAKEET}
    return save_model(folder, kind, transformers.ParakeetFeatureExtractor(), save_subwords, settings)


def save_subwords(folder: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate(SUBWORDS)}
    subwords = Tokenizer(models.BPE(vocabulary, MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    subwords.pre_tokenizer, subwords.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    transformers.ParakeetTokenizer(tokenizer_object=subwords, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder
    )


GRANITE = {
    "num_layers": 2,
    "hidden_dim": 32,
    "num_heads": 2,
    "output_dim": 6,
    "context_size": 8,
    "max_pos_emb": 12,
    "conv_kernel_size": 5,
    "dropout": 0.0,
    "initializer_range": 0.2,
}


def save_granite(folder: Path) -> Path:
    """A Granite speech whose encoder attends within blocks of 160 ms, with its projector and LLM."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {
        "encoder_config": GRANITE,
        "text_config": {"model_type": "granite", "vocab_size": 20, "num_key_value_heads": 2, **sizes},
        "projector_config": {"model_type": "blip_2_qformer", "encoder_hidden_size": 32, **sizes},
        "audio_token_index": 19,
    }
    extractor = transformers.GraniteSpeechFeatureExtractor()
    return save_model(folder, "GraniteSpeechForConditionalGeneration", extractor, save_letters, settings)


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
    "wav2vec2-bert": partial(save_wav2vec2_bert, kind="Wav2Vec2BertModel"),
    "wav2vec2-bert-ctc": partial(save_wav2vec2_bert, kind="Wav2Vec2BertForCTC", add_adapter=True),
    "parakeet-ctc": partial(save_parakeet, kind="ParakeetForCTC"),
    "granite": save_granite,
}
"""Functions that save an encoder of each family."""
