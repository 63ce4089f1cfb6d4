"""CTC scores of transcripts, against a sum over every path."""

import itertools
import math

import pytest
import torch

from speechllm_pl.analysis.data.transcript_scores import transcript_scores
from speechllm_pl.core.ctc_tokenizer import ctc_collapse
from speechllm_pl.data.batch import Batch
from speechllm_pl.models.config import CtcConfig
from speechllm_pl.recognition.recognizer import Recognizer


@pytest.fixture
def recognizer(ctc_tokenizer, small_encoder):
    torch.manual_seed(0)
    model = CtcConfig(encoder=small_encoder).build_speech(ctc_tokenizer.vocab_size).eval()
    return Recognizer(model, ctc_tokenizer)


def batch_of(texts: list[str], samples: int) -> Batch:
    torch.manual_seed(1)
    waveforms = 0.1 * torch.randn(len(texts), samples)
    lengths = torch.full((len(texts),), samples)
    return Batch(waveforms, lengths, texts, ["en"] * len(texts), [str(i) for i in range(len(texts))], [])


def test_the_score_is_the_sum_over_all_paths(recognizer):
    texts = ["one", "two three", "one one"]
    batch = batch_of(texts, samples=4800)
    with torch.no_grad():
        logits, frames = recognizer.speech(batch.audio)
    found = transcript_scores(recognizer, batch)
    for row, text in enumerate(texts):
        log_probs = logits[row, : frames[row]].double().log_softmax(-1)
        wanted = recognizer.tokenizer.encode(text)
        classes = sorted({0, *wanted})  # no other class is on a path of this text
        paths = itertools.product(classes, repeat=int(frames[row]))
        likely = sum(
            math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(path)))
            for path in paths
            if ctc_collapse(path) == wanted
        )
        expected = math.log(likely) if likely else -math.inf
        assert found[row].log_posterior == pytest.approx(expected, abs=1e-3)
        assert found[row].frames == frames[row]


def test_a_transcript_of_more_pieces_than_frames_cannot_be(recognizer):
    (found,) = transcript_scores(recognizer, batch_of(["one two three four five six seven eight"], samples=3200))
    assert found.log_posterior == -math.inf


def test_what_is_heard_is_what_is_transcribed(recognizer):
    batch = batch_of(["one", "two"], samples=16_000)
    heard = [score.heard for score in transcript_scores(recognizer, batch)]
    found = recognizer.transcribe(batch.waveforms, batch.lengths, batch.languages)
    assert heard == [hypothesis.text for hypothesis in found["ctc"]]
