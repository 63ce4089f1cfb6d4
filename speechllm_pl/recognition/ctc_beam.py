"""CTC prefix beam search, with an n-gram language model of pieces if there is one.

The decoder is flashlight-text's (lexicon-free; Collobert et al., arXiv 1609.03193), which reads n-grams with KenLM.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer, ctc_collapse
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.hypothesis import Hypothesis

PIECES_A_FRAME = 50
"""Number of the likeliest classes of a frame by which texts are extended."""

THRESHOLD = 50.0
"""Distance in nats from the best text beyond which a text is given up."""


def ctc_beam_search(
    logits: Tensor,
    frames: Tensor,
    tokenizer: CtcTokenizer,
    num_beams: int,
    ngram: str | None = None,
    ngram_weight: float = 0.0,
) -> list[Hypothesis]:
    """Return the best text of each utterance, with the other texts that were found as its alternatives.

    A text's score is its log-likelihood, summed over its paths, plus `ngram_weight` times that of the n-gram model.

    Args:
        logits: `(B, T, V)`, class 0 is the blank.
        frames: `(B,)` real frames.
        num_beams: texts that are kept at every frame.
        ngram: ARPA or binary file of KenLM whose words are the tokenizer's pieces.

    Raises:
        UserError: flashlight-text is not installed, or the n-gram model cannot be read.
    """
    decoder = _decoder(tuple(tokenizer.pieces), num_beams, ngram, ngram_weight)
    log_probs = logits.float().log_softmax(-1).cpu().contiguous()  # (B, T, V)
    found = []
    for row, count in zip(log_probs, frames.tolist(), strict=True):
        if not count or row[:count].isnan().any():
            found.append(Hypothesis("", log_probability=math.nan if count else 0.0))
            continue
        texts = {}  # the first of equal texts is the likeliest
        for result in decoder.decode(row.data_ptr(), count, row.shape[1]):
            labels = ctc_collapse([label for label in result.tokens if label >= 0])
            text = tokenizer.decode(labels)
            texts.setdefault(text, Hypothesis(text, log_probability=result.score, num_tokens=len(labels)))
        best, *_ = alternatives = tuple(texts.values())
        found.append(replace(best, alternatives=alternatives))
    return found


def ctc_texts(
    greedy: Sequence[Hypothesis], logits: Tensor, frames: Tensor, tokenizer: CtcTokenizer, num_beams: int
) -> list[list[str]]:
    """Texts of each utterance: that of greedy search, then others of a beam search with `num_beams`, 0 for none."""
    texts = [[each.text] for each in greedy]
    if num_beams:
        for own, found in zip(texts, ctc_beam_search(logits, frames, tokenizer, num_beams), strict=True):
            own += [each.text for each in found.alternatives if each.text != own[0]]
    return texts


@cache
def _decoder(pieces: tuple[str, ...], num_beams: int, ngram: str | None, ngram_weight: float) -> Any:
    try:
        from flashlight.lib.text import decoder
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise UserError(
            "CTC's beam search needs flashlight-text: pip install -e '.[ngram]', or leave out --decoder ctc-beam and"
            " --ctc_candidates"
        ) from error
    if ngram is None:
        lm = decoder.ZeroLM()
    elif not Path(ngram).is_file():
        raise UserError(f"ngram {ngram} does not exist: make it with python -m data_prep.ngram")
    else:
        try:
            lm = KenLM(ngram, Dictionary(list(pieces)))
        except Exception as error:  # KenLM's own, of a file that is no model
            remedy = "make it with python -m data_prep.ngram"
            raise UserError(f"ngram {ngram} is not a model that KenLM can read ({error}): {remedy}") from error
    options = decoder.LexiconFreeDecoderOptions(
        beam_size=num_beams,
        beam_size_token=PIECES_A_FRAME,
        beam_threshold=THRESHOLD,
        lm_weight=ngram_weight * math.log(10),  # KenLM has logarithms to base 10
        sil_score=0.0,
        log_add=True,
        criterion_type=decoder.CriterionType.CTC,
    )
    return decoder.LexiconFreeDecoder(options, lm, BLANK, BLANK, [])
