"""Score how well a CTC head finds a transcript in its recording. A low score means that something else is said."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from speechllm_pl.core.ctc_tokenizer import BLANK
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.data.batch import Batch
from speechllm_pl.recognition.ctc_greedy import greedy_ctc
from speechllm_pl.recognition.recognizer import Recognizer


class TranscriptScore(NamedTuple):
    """Score of one utterance."""

    log_posterior: float  # nats, of the whole transcript; -inf: it has more pieces than there are frames
    frames: int
    heard: str  # what the head reads by itself


@torch.inference_mode()
def transcript_scores(recognizer: Recognizer, batch: Batch) -> list[TranscriptScore]:
    """Log posterior of each transcript given its recording, summed over all its CTC paths.

    Args:
        recognizer: of either stage: stage 2 keeps the head.
        batch: at least one utterance.
    """
    device, there = recognizer.device, batch.to(recognizer.device)
    logits, frames = recognizer.speech(there.audio)
    targets, lengths = pad_tokens([recognizer.tokenizer.encode(text) for text in batch.texts], device)
    nats = F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),  # (T, B, V)
        targets,
        frames,
        lengths,
        blank=BLANK,
        reduction="none",
    )
    heard = greedy_ctc(logits, frames, recognizer.tokenizer)
    rows = zip((-nats).tolist(), frames.tolist(), heard, strict=True)
    return [TranscriptScore(score, length, hypothesis.text) for score, length, hypothesis in rows]
