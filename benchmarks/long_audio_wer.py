"""WER of a long recording, joined from utterances with pauses, beside that of the utterances alone.

python benchmarks/long_audio_wer.py --checkpoint runs/demo/finetune --cuts data/spoken_numbers/test.jsonl.gz

The pauses are digital silence of 0.3 to 2 s, drawn from `--seed`. Prints both rates in percent and their difference,
how the pieces were decoded, the rates when the recording is transcribed while it is heard (words of the CTC head, and
pieces), and the words that are made of a minute of silence, noise and tones. `--noise` counts those that are made of
recordings without speech, with and without the guard: in it, of pieces without a remark. `--write` keeps the joined
recording.
"""

import argparse
from collections import Counter
from pathlib import Path

import jiwer
import numpy as np
import soundfile

from speechllm_pl import load
from speechllm_pl.apps.asr import Asr
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.data.utterance import read
from speechllm_pl.recognition.streaming import stream
from speechllm_pl.recognition.transcript import Piece
from speechllm_pl.recognition.word_times import Word

PAUSE_SECONDS = 0.3, 2.0
TIME = np.arange(60 * SAMPLING_RATE) / SAMPLING_RATE


def without_speech(random: np.random.Generator) -> dict[str, np.ndarray]:
    """A minute of each sound, `(N,)`."""
    spectrum = np.fft.rfft(random.standard_normal(len(TIME)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)))
    return {
        "silence": 0 * TIME,
        "white noise": 0.1 * random.standard_normal(len(TIME)),
        "pink noise": 0.1 * pink / pink.std(),
        "hum": 0.1 * sum((np.sin(2 * np.pi * 50 * k * TIME) / k for k in range(1, 20)), 0 * TIME),
        "a tone": 0.3 * np.sin(2 * np.pi * 440 * TIME),
        "tones": 0.3 * np.sin(2 * np.pi * random.uniform(100, 4000, 60).repeat(SAMPLING_RATE) * TIME),
        "beeps": 0.3 * np.sin(2 * np.pi * 800 * TIME) * (TIME % 1 < 0.5),
    }


def words_in(asr: Asr, folder: Path) -> str:
    """Count of the words that a recogniser makes of a folder's recordings without speech."""
    found = asr.transcribe(sorted(path for path in folder.iterdir() if path.suffix in (".wav", ".flac")))
    words = [len(transcript.words) for transcript in found]
    plain = sum(len(piece.words) for transcript in found for piece in transcript.pieces if not piece.remark)
    seconds = sum(transcript.seconds for transcript in found)
    return (
        f"{sum(words)} words, {plain} of them without a remark, in {sum(map(bool, words))} of {len(found)} recordings"
        f" of {seconds / 60:.1f} minutes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--cuts", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--max-seconds", type=float, help="longest piece, for a checkpoint that does not tell")
    parser.add_argument("--decoder", default="speculative")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=Path, help="folder of recordings without speech (WAV, FLAC)")
    parser.add_argument("--write", type=Path, help="file for the joined recording")
    given = parser.parse_args()
    random = np.random.default_rng(given.seed)
    asr = load(given.checkpoint, max_seconds=given.max_seconds, decoder=given.decoder)
    utterances, texts, parts, seconds = [], [], [], 0.0
    cuts = read_cuts(given.cuts)
    for number in range(len(cuts)):
        if seconds > 60 * given.minutes:
            break
        cut = cuts[number]
        utterances.append(read(cut))
        texts.append(cut.supervisions[0].text or "")
        pause = np.zeros(round(random.uniform(*PAUSE_SECONDS) * SAMPLING_RATE), np.float32)
        parts += [utterances[-1], pause]
        seconds += (len(utterances[-1]) + len(pause)) / SAMPLING_RATE
    alone = 100 * jiwer.wer(texts, [found.text for found in asr.transcribe(utterances)])
    recording = np.concatenate(parts)
    if given.write is not None:
        soundfile.write(given.write, recording, SAMPLING_RATE)
    joined = asr.transcribe(recording)
    together = 100 * jiwer.wer(" ".join(texts), joined.text)
    print(f"{len(texts)} utterances alone: WER {alone:.2f} %")
    print(f"joined, {joined.seconds / 60:.1f} minutes: WER {together:.2f} %, {together - alone:+.2f}")
    with asr.transcriber.recognizer.decoding():
        found = list(stream([recording], asr.transcriber))
    for kind, what in ((Word, "words of the CTC head"), (Piece, "pieces")):
        streamed = " ".join(each.text for each in found if isinstance(each, kind))
        print(f"while it is heard, {what}: WER {100 * jiwer.wer(' '.join(texts), streamed):.2f} %")
    print("pieces:", dict(Counter(piece.decoded_by for piece in joined.pieces)))
    for name, samples in without_speech(random).items():
        print(f"a minute of {name}: {asr.transcribe(samples.astype(np.float32)).text or 'no words'}")
    if given.noise is not None:
        print(f"{given.noise}: {words_in(asr, given.noise)}")
        asr.transcriber.limits = asr.transcriber.search.limits = None
        print(f"without the guard: {words_in(asr, given.noise)}")


if __name__ == "__main__":
    main()
