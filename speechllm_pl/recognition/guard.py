"""Judge by what the CTC head heard whether the LLM's text can be what was said.

An LLM writes fluent text whatever it hears. The CTC head is bound to the frames: it may misspell, but it neither loops
nor goes on in silence. Where both disagree strongly the LLM is asked again, and then the CTC head is believed,
unless that is unsure itself, as it is of noises: then nothing was said.
"""

import zlib
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from speechllm_pl.recognition.hypothesis import Hypothesis


@dataclass(frozen=True)
class GuardLimits:
    """Limits beyond which a text is not believed.

    Attributes:
        compression_ratio: bytes of the text over those that zlib leaves; repetitive text has a higher ratio (2.4 as in
            openai/whisper).
        compressed_characters: length below which texts are not judged by compression.
        length_ratio: characters of the longer text over those of the shorter one.
        slack_characters: added to lengths, so that short texts may differ.
        disagreement: edit distance of both texts over the longer one's length and the slack, in characters.
        continuation_characters: characters that the text may have in words behind what the CTC head heard. Of 400 test
            utterances of the demo none has more than 6, and most of these words are wrong.
        heard_confidence: geometric mean of the CTC head's probabilities where it hears something, below which that is
            nothing: it is rather not what it takes it for. Of 560 utterances of the demo's dev and test sets none has
            less than 0.56, and a quarter of what is heard in recordings of noise has less than 0.5.
        word_confidence: mean confidence of a text's words by the CTC head. Of those 560 utterances 9 have a text
            below 0.05, all of them wrong.
        steady_db, tone_share: limits of `no_speech`, beyond which a sound is not decoded at all.
    """

    compression_ratio: float = 2.4
    compressed_characters: int = 80
    length_ratio: float = 2.0
    slack_characters: int = 4
    disagreement: float = 0.55
    continuation_characters: int = 10
    heard_confidence: float = 0.5
    word_confidence: float = 0.05
    steady_db: float = 5.0
    tone_share: float = 0.95


def objection(text: Hypothesis, heard: Hypothesis, confidence: float = 1.0, limits: GuardLimits = GuardLimits()) -> str:
    """Say why a text of the LLM is not believed; empty if it is.

    Args:
        text: hypothesis of the LLM.
        heard: hypothesis of the CTC head for the same audio.
        confidence: mean confidence of the text's words by the CTC head, 0 to 1.
    """
    if not heard.text:
        return "the CTC head heard nothing" if text.text else ""
    if text.looped:
        return "the LLM's text ran into a loop"
    if text.truncated:
        return "the LLM's text did not end"
    if _compression_ratio(text.text) > limits.compression_ratio and len(text.text) >= limits.compressed_characters:
        return "the LLM's text repeats itself"
    lengths = sorted((len(text.text) + limits.slack_characters, len(heard.text) + limits.slack_characters))
    if lengths[1] > limits.length_ratio * lengths[0]:
        shorter = len(text.text) < len(heard.text)
        return f"the LLM's text is too {'short' if shorter else 'long'} for what the CTC head heard"
    if Levenshtein.distance(text.text, heard.text) > limits.disagreement * lengths[1]:
        return "the LLM's text has little in common with what the CTC head heard"
    if confidence < limits.word_confidence:
        return "the CTC head heard other words than the LLM's text has"
    if _continuation(text.text, heard.text) > limits.continuation_characters:
        return "the LLM's text goes on behind what the CTC head heard"
    return ""


def _continuation(text: str, heard: str) -> int:
    """By how much a text is nearer, in characters, to what was heard if its last words are left out."""
    words = text.split()
    distances = [Levenshtein.distance(" ".join(words[:count]), heard) for count in range(len(words) + 1)]
    return distances[-1] - min(distances)


def _compression_ratio(text: str) -> float:
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else 1.0
