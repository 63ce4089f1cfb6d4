"""Train the SentencePiece model of the CTC head from the transcripts of Lhotse manifests.

The pieces are what CTC predicts, so there are none that no transcript can contain: no sentence marks, no
padding, only <unk> (piece 0) beside the learned ones; the blank is added by `CtcTokenizer`. Every character
of the transcripts has a piece. The text is taken as it is, for it was normalized with the corpus.
"""

import io
import sys
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from data_prep.corpora.transcripts import read_transcripts
from data_prep.machinery.command_line import program_parser, run
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.whole_file import replace_atomically

THREADS = 4
"""Fixed, whatever the machine: SentencePiece's sums, hence its pieces, depend on how the work is divided."""

LONGEST_SENTENCE = 4192
"""Bytes; SentencePiece's default, raised where a transcript is longer."""


def train(texts: list[str], vocab_size: int, max_piece_length: int = 4) -> bytes:
    """Train a unigram model of at most `vocab_size` pieces, <unk> included; return it serialized.

    It has fewer when the texts do not hold that many useful pieces. The same texts give the same bytes.

    Args:
        max_piece_length: letters. With few texts, long pieces are rare compounds, each heard a few times only, and
            CTC stays for hundreds of steps at the loss of guessing. Short ones are heard often; they leave it free
            to misspell, which passes as training goes on.

    Raises:
        UserError: `vocab_size` cannot hold <unk>, the word mark and every character.
    """
    least = len(set("".join(texts)) - {" "}) + 2
    if vocab_size < least:
        raise UserError(
            f"a vocabulary of {vocab_size} cannot hold the {least - 2} characters of these transcripts: "
            f"give --vocab-size {least} or more"
        )
    model = io.BytesIO()
    try:
        SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            max_sentencepiece_length=max_piece_length,
            character_coverage=1.0,
            normalization_rule_name="identity",
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            # Longer sentences would be left out, and their characters with them.
            max_sentence_length=max(LONGEST_SENTENCE, *(len(text.encode()) + 1 for text in texts)),
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"SentencePiece cannot make {vocab_size} pieces of these transcripts: {error}") from error
    return model.getvalue()


def main() -> None:
    parser = program_parser("tokenizer", (__doc__ or "").split("\n")[0])
    cuts = "Lhotse cut sets with the training transcripts."
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help=cuts)
    pieces = "Number of pieces, <unk> included; CTC adds a blank (default: %(default)s; the paper's is 1547)."
    parser.add_argument("--vocab-size", type=int, default=256, help=pieces)
    letters = "Letters of the longest piece; 16 for a large corpus (default: %(default)s)."
    parser.add_argument("--max-piece-length", type=int, default=4, help=letters)
    output = "File to write, for example data/mine/tokenizer.model."
    parser.add_argument("--output", type=Path, required=True, help=output)
    args = parser.parse_args()

    texts = [text for _, text in read_transcripts(args.manifest)]
    model = train(texts, args.vocab_size, args.max_piece_length)
    with replace_atomically(args.output) as file:
        file.write(model)
    reached = SentencePieceProcessor(model_proto=model).GetPieceSize()
    print(f"{args.output}: {reached} pieces from {len(texts)} transcripts")
    if reached < args.vocab_size:
        print(
            f"warning: these transcripts give only {reached} pieces, not {args.vocab_size}; "
            f"checkpoints trained with this tokenizer will have {reached} and the blank",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(main)
