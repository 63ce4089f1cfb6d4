"""Search for the LLM's texts under the guard: a doubted one is asked for again, and then the CTC head is believed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from speechllm_pl.recognition.acceptance import Acceptance
from speechllm_pl.recognition.ctc_greedy import confidences
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.guard import GuardLimits, objection
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Heard, Recognizer
from speechllm_pl.recognition.transcript import DecodedBy
from speechllm_pl.recognition.word_times import AlignedText

RETRY = DecodingOptions(decoder="beam", ctc_weight=0.5)
"""Search for a text in the place of one that is not believed: of several the one that fits the audio, too."""


class DecidedText(NamedTuple):
    """Text that was decided on, and how."""

    hypothesis: Hypothesis
    aligned: AlignedText
    decoded_by: DecodedBy
    remark: str = ""


class GuardedSearch:
    """Decides on the text of each utterance.

    Args:
        recognizer: model and tokenizers.
        options: search for the LLM's text.
        limits: limits of the guard; None believes every text of the LLM.

    Attributes:
        acceptance: counts of the first texts of all utterances so far.
    """

    def __init__(self, recognizer: Recognizer, options: DecodingOptions, limits: GuardLimits | None):
        self.recognizer, self.options, self.limits = recognizer, options, limits
        self.acceptance = Acceptance()

    def __call__(self, heard: Heard, language: str) -> list[DecidedText]:
        """Decide on a text for each utterance of a batch.

        Args:
            language: code of the language, for an instruction that names it.
        """
        sure = confidences(heard.logits, heard.frames).tolist()
        log_probs = heard.logits.log_softmax(-1).cpu()
        rows = [row[:count] for row, count in zip(log_probs, heard.frames.tolist(), strict=True)]
        texts = [self._heard(*found) for found in zip(heard.hypotheses, rows, sure, strict=True)]
        if heard.audio is None:
            return texts
        asked = [i for i, (found, *_) in enumerate(texts) if found.finite and (found.text or not self.limits)]
        reasons: dict[int, str] = {}
        for decoded_by, options in self._attempts():
            if not asked:
                break
            written = self.recognizer.write(heard.rows(asked), [language] * len(asked), options)
            if decoded_by == "llm":
                self.acceptance += Acceptance.of(written)
            doubted = []
            for i, hypothesis in zip(asked, written, strict=True):
                aligned = self._aligned(hypothesis, rows[i])
                if why := self._objection(hypothesis, heard.hypotheses[i], aligned):
                    reasons.setdefault(i, why)
                    doubted.append(i)
                else:
                    taken = options.accept_entropy is not None and not hypothesis.passes  # without asking the LLM
                    by = "ctc" if taken or hypothesis.by_ctc else decoded_by
                    texts[i] = DecidedText(hypothesis, aligned, by, reasons.get(i, "") or _cut_short(hypothesis))
            asked = doubted
        for i in asked:
            texts[i] = texts[i]._replace(remark=reasons[i])
        return texts

    def _attempts(self) -> Iterator[tuple[DecodedBy, DecodingOptions]]:
        """Searches in the order in which they are tried."""
        yield "llm", self.options
        yield "llm-retried", replace(RETRY, max_new_tokens=self.options.max_new_tokens)

    def _heard(self, found: Hypothesis, log_probs: Tensor, confidence: float) -> DecidedText:
        """Text of the CTC head; silence if it heard nothing, or is unsure of it."""
        remark = ""
        if found.text and self.limits is not None and confidence < self.limits.heard_confidence:
            found, remark = Hypothesis(""), "the CTC head is unsure of what it heard"
        return DecidedText(found, self._aligned(found, log_probs), "ctc" if found.text else "silence", remark)

    def _aligned(self, hypothesis: Hypothesis, log_probs: Tensor) -> AlignedText:
        return AlignedText(log_probs, hypothesis.text, self.recognizer.tokenizer)

    def _objection(self, hypothesis: Hypothesis, heard: Hypothesis, aligned: AlignedText) -> str:
        if self.limits is None or not hypothesis.finite:
            return ""
        most = self.options.max_new_tokens
        if most is not None and hypothesis.num_tokens >= most and not hypothesis.looped:  # cut short as it was told
            return ""
        return objection(hypothesis, heard, aligned.confidence, self.limits)


def _cut_short(hypothesis: Hypothesis) -> str:
    if not hypothesis.truncated:
        return ""
    return "the text was ended in a loop" if hypothesis.looped else "the text met its length cap and may be cut short"
