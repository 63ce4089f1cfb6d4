"""Error of word times: CTC alignments of a model's own transcripts against the times that the voices told.

    python benchmarks/word_times.py runs/demo/finetune/checkpoints/best.ckpt

Cuts need `supervision.alignment["word"]`, as `data_prep.spoken_numbers` and `data_prep.fsdd` write it. Utterances whose
transcript is not the reference are left out, since their words cannot be compared. A constant delay of the model is
fitted on dev, separately for starts and ends.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from lhotse.cut import Cut
from machine import describe

from speechllm_pl.core.padded import Padded
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.word_times import word_times


def differences(recognizer: Recognizer, cut: Cut, options: DecodingOptions) -> list[tuple[float, float]]:
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
    words = iter(word_times(logits[0].log_softmax(-1), text, recognizer.tokenizer, seconds, cut.duration))
    late = []
    for item in supervision.alignment["word"]:  # of one word, or of several that were said as one
        own = [next(words) for _ in item.symbol.split()]
        if own[0].aligned and own[-1].aligned:
            late.append((own[0].start_seconds - item.start, own[-1].end_seconds - item.end))
    return late


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/spoken_numbers"))
    parser.add_argument("--decoder", default="greedy")
    parser.add_argument("--utterances", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.checkpoint)
    late = {}
    for split in ("dev", "test"):
        cuts = read_manifest(args.data / f"{split}.jsonl.gz")[: args.utterances]
        of_cuts = [differences(recognizer, cut, DecodingOptions(args.decoder)) for cut in cuts]
        late[split] = np.array([each for found in of_cuts for each in found])  # (words, 2)
        print(f"{split}: {len(late[split])} words in {sum(map(bool, of_cuts))} of {len(cuts)} utterances")
    delay = np.median(late["dev"], axis=0)
    errors = np.abs(late["test"] - delay)
    print(f"{describe(1)}, fp32")
    for name, column in (("starts", 0), ("ends", 1)):
        p90 = np.quantile(errors[:, column], 0.9)
        print(
            f"{name}: mean absolute error {1000 * errors[:, column].mean():.1f} ms, 90 % below {1000 * p90:.0f} ms,"
            f" after a delay of {1000 * delay[column]:.0f} ms fitted on dev"
        )


if __name__ == "__main__":
    main()
