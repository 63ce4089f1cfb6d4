"""Error of word times: CTC alignments of a model's own transcripts against the times that are known of its words.

    python benchmarks/word_times.py runs/demo/finetune/checkpoints/best.ckpt
    python benchmarks/word_times.py runs/fsdd/finetune/checkpoints/best.ckpt --data data/fsdd --gaps

Cuts need `supervision.alignment["word"]`, as `data_prep.spoken_numbers` (when the voice began a word) and
`data_prep.fsdd` (edges of the joined recordings) write it. Utterances whose transcript is not the reference are left
out, since their words cannot be compared. A constant delay of the model is fitted on dev, separately for starts and
ends.
"""

import argparse
from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
import torch
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem
from machine import describe

from speechllm_pl.core.padded import Padded
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.word_times import AlignedText, Word, loudness_of


def differences(
    recognizer: Recognizer, cut: Cut, options: DecodingOptions, gaps: bool = False
) -> list[tuple[float, float]]:
    """Seconds by which the starts and ends of an utterance's words are late; none where its transcript is wrong."""
    (supervision,) = cut.supervisions
    samples = torch.from_numpy(cut.load_audio())  # (1, N)
    lengths = torch.tensor([samples.shape[1]])
    with recognizer.decoding("32-true"):
        found = recognizer.transcribe(samples, lengths, [str(supervision.language)], options)
        logits, _ = recognizer.speech(Padded(samples, lengths))
    text = found[recognizer.systems(options)[-1]][0].text
    if text != supervision.text or not supervision.alignment:
        return []
    seconds = recognizer.speech.seconds_per_frame
    loudness = loudness_of(samples[0].numpy())
    aligned = AlignedText(logits[0].log_softmax(-1), text, recognizer.tokenizer)
    words = aligned.words(seconds, cut.duration, loudness)
    return lateness(words, supervision.alignment["word"], gaps)


def lateness(words: Sequence[Word], items: Sequence[AlignmentItem], gaps: bool) -> list[tuple[float, float]]:
    """Seconds by which aligned words start and end late.

    Args:
        words: words of a transcript.
        items: the same words with their known times, some perhaps joined, as they were said.
        gaps: compare edges of gaps between words only: NaN for the start of the first item and the end of the last.
    """
    late, rest = [], iter(words)
    for place, item in enumerate(items):
        own = [next(rest) for _ in item.symbol.split()]
        if own[0].aligned and own[-1].aligned:
            start = own[0].start_seconds - item.start if place or not gaps else nan
            end = own[-1].end_seconds - item.end if place + 1 < len(items) or not gaps else nan
            late.append((start, end))
    return late


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/spoken_numbers"))
    parser.add_argument("--decoder", default="greedy")
    parser.add_argument("--utterances", type=int, default=400)
    parser.add_argument("--gaps", action="store_true", help="compare only the edges of gaps between words")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.checkpoint)
    late, options = {}, DecodingOptions(args.decoder)
    for split in ("dev", "test"):
        cuts = list(read_manifest(args.data / f"{split}.jsonl.gz"))
        if args.gaps:
            cuts = [cut for cut in cuts if " " in (cut.supervisions[0].text or "")]
        cuts = cuts[: args.utterances]
        of_cuts = [differences(recognizer, cut, options, args.gaps) for cut in cuts]
        late[split] = np.array([each for found in of_cuts for each in found])  # (words, 2)
        print(f"{split}: {len(late[split])} words in {sum(map(bool, of_cuts))} of {len(cuts)} utterances")
    delay = np.nanmedian(late["dev"], axis=0)
    print(f"{describe(1)}, fp32")
    for name, column in (("starts", 0), ("ends", 1)):
        errors = 1000 * np.abs(late["test"][:, column] - delay[column])
        errors = errors[~np.isnan(errors)]
        print(
            f"{name}: mean absolute error {errors.mean():.1f} ms, 90 % below {np.quantile(errors, 0.9):.0f} ms,"
            f" after a delay of {1000 * delay[column]:.0f} ms fitted on dev ({len(errors)} words)"
        )


if __name__ == "__main__":
    main()
