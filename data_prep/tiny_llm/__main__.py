"""Build and pretrain the tiny LLaMA that stands in for a large one, from the transcripts of Lhotse manifests.

Why it is needed: a speech LLM repeats what the audio embeddings in its context say. A large LLM can copy from
its context before it hears any audio; a tiny one made from scratch cannot, and then it does not learn it from
a few hours of speech. So it learns it here, from text alone, in two to three minutes on one core.

What it is trained on, always as next-token prediction:

* plain text, `<s> text </s>`, loss on everything: the language model;
* noisy copies, `prefix <s> text </s>`, loss on the text only. The prefix is what audio embeddings will look
  like: the text's tokens with runs of `<filler>` between them, some held for several frames, some missing or
  wrong (`noisy_copy`), and at the level of embeddings blurred, scaled and noisy (`perturb`).

Most texts are recombined word spans of the transcripts, because the ability that counts is to copy a text
that was never seen. The result is an ordinary Hugging Face folder. `pretraining.json` in it records the
settings and how well texts that were held out are copied.
"""

from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from data_prep.machinery.command_line import program_parser, run
from data_prep.tiny_llm.llm_folder import build
from data_prep.tiny_llm.noisy_copies import Noise
from data_prep.tiny_llm.pretraining import LlmRecipe
from data_prep.tiny_llm.text_pool import read_texts, too_few
from speechllm_pl.core.errors import UserError


def main() -> None:
    defaults = LlmRecipe()
    parser = program_parser("tiny_llm", (__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help="Lhotse cuts to train on.")
    held_out = "Lhotse cuts whose texts are held out, to measure how well they are copied."
    parser.add_argument("--dev-manifest", type=Path, nargs="+", help=held_out)
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to write.")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="Steps (default: %(default)s).")
    most = "Largest number of tokens (default: %(default)s)."
    parser.add_argument("--vocabulary", type=int, default=defaults.vocabulary_size, help=most)
    products = "Precision of matrix products; auto is the faster one here (default: %(default)s)."
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default=defaults.precision, help=products)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="Seed (default: %(default)s).")
    args = parser.parse_args()
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    torch.set_num_threads(1)  # the result then does not depend on the machine's number of cores
    transformers_logging.disable_progress_bar()  # of saving, which takes no time
    texts = read_texts(args.manifest)
    if warning := too_few(texts):
        print(warning)
    record = build(
        texts,
        args.output,
        dev=read_texts(args.dev_manifest) if args.dev_manifest else None,
        recipe=LlmRecipe(steps=args.steps, vocabulary_size=args.vocabulary, precision=args.precision, seed=args.seed),
    )
    clean, wrong = record["noisy_copy"], record["noisy_copy_with_wrong_tokens"]
    print(f"{args.output}: {record['parameters'] / 1e6:.2f} M parameters, {record['vocabulary']} tokens")
    print(f"pretrained in {record['seconds']:.0f} s, loss {record['loss']['last']:.3f}")
    print(f"copies of {record['held_out_texts']} held-out texts:")
    print(f"  noisy prefix             WER {clean['wer']:6.1%}   exact {clean['exact']:6.1%}")
    print(f"  and {Noise().wrong:.0%} of tokens wrong   WER {wrong['wer']:6.1%}   exact {wrong['exact']:6.1%}")


if __name__ == "__main__":
    run(main)
