"""Estimate an n-gram language model of CTC pieces from the transcripts of Lhotse manifests, in ARPA format.

Interpolated Kneser-Ney smoothing (Kneser & Ney, ICASSP 1995; Chen & Goodman, 1999, with one discount an order). Words
of the model are pieces of the CTC tokenizer; `evaluate --decoder ctc-beam --ngram FILE` reads it.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.corpora.transcripts import read_transcripts
from data_prep.machinery.command_line import at_least_one, run
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.tokenizers import read_tokenizer
from speechllm_pl.storage.whole_file import replace_atomically

BEGIN, END = "<s>", "</s>"

NGram = tuple[str, ...]


class NGrams(NamedTuple):
    """N-grams of one length."""

    probabilities: dict[NGram, float]
    """Probability of the last word after the others."""

    backoffs: dict[NGram, float]
    """Factor of the probabilities of what was never seen after all of these words, by shorter n-grams."""


def estimate(sentences: Iterable[Sequence[str]], vocabulary: Iterable[str], order: int) -> list[NGrams]:
    """Estimate the n-grams of each length from 1 to `order`.

    Args:
        sentences: words of each sentence, without marks of its begin and end.
        vocabulary: all words that there can be; those never seen have a probability too.
    """
    words = {*vocabulary, END}
    lower: dict[NGram, float] = {(): 1 / len(words)}
    model: list[NGrams] = []
    for counts in _counts(sentences, order):
        occurring = Counter(counts.values())
        discount = occurring[1] / (occurring[1] + 2 * occurring[2]) if occurring[1] else 0.5
        totals: Counter[NGram] = Counter()
        followers: Counter[NGram] = Counter()
        for ngram, count in counts.items():
            totals[ngram[:-1]] += count
            followers[ngram[:-1]] += 1
        backoffs = {history: discount * followers[history] / totals[history] for history in totals}
        if model:
            model[-1].backoffs.update(backoffs)
        else:
            counts = dict.fromkeys(((word,) for word in words), 0) | counts
        lower = {
            ngram: max(count - discount, 0) / totals[ngram[:-1]] + backoffs[ngram[:-1]] * lower[ngram[1:]]
            for ngram, count in counts.items()
        }
        model.append(NGrams(lower, {}))
    return model


def _counts(sentences: Iterable[Sequence[str]], order: int) -> list[dict[NGram, int]]:
    """Counts of n-grams by length: how often the longest occur, and after how many words shorter ones do.

    Nothing precedes the begin of a sentence: n-grams from there on count as often as they occur.
    """
    counts = [Counter[NGram]() for _ in range(order)]
    for sentence in sentences:
        marked = (BEGIN, *sentence, END)
        for length in range(1, order + 1):
            starts = range(len(marked) - length + 1) if length == order else range(length > 1)
            counts[length - 1].update(
                marked[start : start + length] for start in starts if start + length <= len(marked)
            )
    for length in range(order - 1, 0, -1):
        counts[length - 1].update(ngram[1:] for ngram in counts[length])
    counts[0].pop((BEGIN,), None)
    return [dict(of_length) for of_length in counts]


def arpa(model: Sequence[NGrams]) -> str:
    """Text of an ARPA file, sorted, with logarithms to base 10."""
    unigrams = NGrams({(BEGIN,): 1e-99, **model[0].probabilities}, model[0].backoffs)  # a begin is never predicted
    lengths = [unigrams, *model[1:]]
    lines = ["\\data\\", *(f"ngram {length}={len(each.probabilities)}" for length, each in enumerate(lengths, 1))]
    for length, (probabilities, backoffs) in enumerate(lengths, 1):
        lines += ["", f"\\{length}-grams:"]
        for ngram, probability in sorted(probabilities.items()):
            backoff = f"\t{math.log10(backoffs[ngram]):.6f}" if ngram in backoffs else ""
            lines.append(f"{math.log10(probability):.6f}\t{' '.join(ngram)}{backoff}")
    return "\n".join([*lines, "", "\\end\\", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.ngram", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--manifest", type=Path, nargs="+", required=True, help="Lhotse cut sets with the training transcripts."
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="The CTC tokenizer, tokenizer.model.")
    parser.add_argument("--order", type=_order, default=5, help="Pieces of the longest n-gram (default: %(default)s).")
    parser.add_argument("--output", type=Path, required=True, help="File to write, for example data/mine/ngram.arpa.")
    args = parser.parse_args()

    tokenizer = read_tokenizer(args.tokenizer)
    names = tokenizer.pieces
    texts = [text for _, text in read_transcripts(args.manifest)]
    if not texts:
        raise UserError(f"{' '.join(map(str, args.manifest))}: no transcript to learn from")
    sentences = ([names[piece] for piece in tokenizer.encode(text)] for text in texts)
    model = estimate(sentences, names[1:], args.order)
    with replace_atomically(args.output) as file:
        file.write(arpa(model).encode())
    sizes = ", ".join(str(len(each.probabilities)) for each in model)
    print(f"{args.output}: {sizes} n-grams of 1 to {args.order} pieces from {len(texts)} transcripts")


def _order(text: str) -> int:
    order = at_least_one(text)
    if order > 6:
        raise argparse.ArgumentTypeError("the decoder reads n-grams of at most 6 pieces")
    return order


if __name__ == "__main__":
    run(main)
