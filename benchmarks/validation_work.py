"""How many tokens a rank's LLM writes one after the other in a validation, and which share of the time that takes.

    python benchmarks/validation_work.py

Dev is like that of MLS: 17,781 utterances (en 3,807, de 3,469, nl 3,095, fr 2,416, es 2,408, it 1,248, pt 826, pl 512),
lengths and texts as `benchmarks/padding.py` draws them. A batch takes as many steps as its longest text has tokens, or,
while one of its rows loops up to the cap, as the cap allows. Between two validations are `--train_steps` steps of
`--train_seconds` each (the plan's figure for LLaMA-7B on an A100-40, docs/scale.md). The time of a step of decoding,
`--step_seconds`, is an assumption; the ratio of the rows does not depend on it.
"""

import argparse

import numpy as np
from padding import like_mls

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.epoch_plan import Draw, EpochBatches
from speechllm_pl.data.sample import balanced_sample
from speechllm_pl.recognition.text_end import EXTRA_TOKENS, TOKENS_PER_SECOND

UTTERANCES = (3_807, 3_469, 3_095, 2_416, 2_408, 1_248, 826, 512)
NUM_BUCKETS = 30
ROWS = (
    ("all of dev, 80 s, loops to the cap", None, 80, True),
    ("all of dev, 80 s", None, 80, False),
    ("all of dev, 640 s", None, 640, False),
    ("2,000 utterances, 80 s", 2_000, 80, False),
    ("2,000 utterances, 640 s", 2_000, 640, False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--train_steps", type=int, default=5_000)
    parser.add_argument("--train_seconds", type=float, default=0.306)
    parser.add_argument("--step_seconds", type=float, default=0.03)
    parser.add_argument("--looping", type=float, default=0.01, help="share of utterances in the row that has loops")
    args = parser.parse_args()
    training = args.train_steps * args.train_seconds
    print(f"{'':<36} batches a rank   steps a rank   share of the time on {args.ranks} GPUs")
    for name, utterances, max_duration, loops in ROWS:
        batches, steps = work(utterances, max_duration, args.ranks, args.looping if loops else 0)
        share = steps * args.step_seconds / (training + steps * args.step_seconds)
        print(f"{name:<36} {batches:>14} {steps:>14,} {share:>10.1%}")


def work(utterances: int | None, max_duration: float, ranks: int, looping: float) -> tuple[int, int]:
    """Return the batches of a rank, and steps of the rank that has most."""
    lengths = like_mls(sum(UTTERANCES))
    languages = np.random.default_rng(0).permutation(np.repeat(np.arange(len(UTTERANCES)), UTTERANCES))
    caps = np.ceil(lengths.seconds * TOKENS_PER_SECOND) + EXTRA_TOKENS
    loops = np.random.default_rng(1).random(len(caps)) < looping
    tokens = np.where(loops, caps, lengths.tokens + 1)
    draw = None if utterances is None else Draw(balanced_sample(languages, utterances, seed=0))
    buckets = Buckets(lengths.seconds, max_duration, NUM_BUCKETS)
    each = [
        [int(tokens[batch.indices].max(initial=0)) for batch in plan]
        for plan in (
            EpochBatches(buckets, draw, shuffle=False, rank=rank, world_size=ranks, fill="empty")
            for rank in range(ranks)
        )
    ]
    return max(map(len, each)), max(map(sum, each))


if __name__ == "__main__":
    main()
