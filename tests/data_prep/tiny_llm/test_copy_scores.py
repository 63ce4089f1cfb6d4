"""Scores of copying: greedy texts against what was to be copied."""

import pytest
import torch

from data_prep.tiny_llm.copy_scores import copy_scores
from data_prep.tiny_llm.noisy_copies import Noise
from data_prep.tiny_llm.pretraining import LlmRecipe, make_model
from data_prep.tiny_llm.subwords import train_tokenizer


def test_what_is_written_is_scored_against_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two", "three", "four five six"]
    tokenizer = train_tokenizer(texts, 60)
    model = make_model(LlmRecipe(hidden_size=8, intermediate_size=8, layers=1, heads=1), len(tokenizer))
    written = iter([["one two", "tree"], ["four five six"]])  # in batches of two

    def generate(**_: object) -> torch.Tensor:
        return tokenizer(next(written), padding=True, return_tensors="pt")["input_ids"]

    monkeypatch.setattr(model, "generate", generate)
    scores = copy_scores(model, tokenizer, texts, Noise(), seed=0, batch_size=2)
    assert scores == {"wer": pytest.approx(1 / 6), "exact": pytest.approx(2 / 3)}
