"""Recognition of cuts as `transcribe` does it: divided at pauses, and under the guard if that is asked for."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from lhotse.cut import Cut
from tqdm import tqdm

from speechllm_pl.apps.recognized_cuts import Recognized, RecognizedBatch
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.data.utterance import read_utterance
from speechllm_pl.recognition.decoding_options import DecodingOptions, Precision
from speechllm_pl.recognition.guard import GuardLimits
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.transcriber import Source, Transcriber
from speechllm_pl.recognition.transcript import Piece, Transcript
from speechllm_pl.storage.progress import progress_bar

CTC = DecodingOptions(decoder="ctc")
FALLBACK = "ctc-fallback"
"""Origin of a CTC head's text that was taken because the LLM's was doubted."""
UNSURE = "ctc-unsure"
"""Origin of an empty text in the place of what the CTC head heard, but was unsure of."""


def recognize_recordings(
    recognizer: Recognizer,
    cuts: Sequence[Cut],
    max_duration: float,
    *,
    precision: Precision | None = None,
    options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    guard: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Recognized:
    """Recognise cuts of any length with each system; those that cannot be read are skipped.

    The guard concerns the last system alone: beside an LLM, the CTC head's texts are those that it has without a guard.

    Args:
        max_duration: seconds of audio in a batch of pieces.
        precision: precision of the computation; default is that of training.
        options: options of the search for an LLM's text.
        guard: doubt texts of the LLM, as `transcribe` does.
        rank, world_size: select this rank's share of the cuts.

    Raises:
        UserError: a system's logits are not finite.
    """
    started = time.perf_counter()
    cuts = [cuts[number] for number in range(rank, len(cuts), world_size)]
    *others, judged = recognizer.systems(options)
    limits = GuardLimits() if guard else None
    unread: set[str] = set()
    found: dict[str, list[Transcript]] = {}
    with (
        recognizer.decoding(precision),
        progress_bar("decoding", len(cuts) * (1 + len(others)), unit=" recordings", disable=rank > 0) as bar,
    ):
        for system in (*others, judged):
            search, doubts = (options, limits) if system == judged else (CTC, None)
            transcriber = Transcriber(recognizer, search, batch_seconds=max_duration, limits=doubts)
            found[system] = _transcripts(transcriber, cuts, unread, bar)
    read = [cut for cut in cuts if cut.id not in unread]
    batch = RecognizedBatch(
        [cut.id for cut in read],
        [_language(cut) for cut in read],
        [cut.supervisions[0].text or "" for cut in read],
        [cut.id for cut in cuts if cut.id in unread],
        {system: [_hypothesis(each) for each in transcripts] for system, transcripts in found.items()},
        [cut.duration for cut in read],
        time.perf_counter() - started,
        transcriber.search.acceptance,
        Counter(_origin(piece) for transcript in found[judged] for piece in transcript.pieces),
    )
    return Recognized([batch], sum(batch.durations), batch.seconds)


def _transcripts(transcriber: Transcriber, cuts: Sequence[Cut], unread: set[str], bar: tqdm) -> list[Transcript]:
    """Transcripts of cuts in their order, without those that cannot be read, whose ids are added to `unread`."""

    def samples(cut: Cut) -> Iterator[np.ndarray]:
        try:
            yield read_utterance(cut).samples
        except Exception as error:  # whatever a decoder throws
            unread.add(cut.id)
            raise UserError(f"{cut.id} cannot be read") from error

    transcripts: dict[str, Transcript] = {}
    for language in dict.fromkeys(map(_language, cuts)):
        members = [cut for cut in cuts if _language(cut) == language]
        sources = (Source(cut.id, samples(cut)) for cut in members)
        for cut, transcript in zip(members, transcriber.transcripts(sources, language), strict=True):
            if isinstance(transcript, Transcript):
                transcripts[cut.id] = transcript
            elif cut.id not in unread:
                raise transcript
            bar.update()
    return [transcripts[cut.id] for cut in cuts if cut.id in transcripts]


def _language(cut: Cut) -> str:
    return cut.supervisions[0].language or UNKNOWN_LANGUAGE


def _hypothesis(transcript: Transcript) -> Hypothesis:
    cut_short = any(piece.remark and piece.decoded_by == "llm" for piece in transcript.pieces)
    return Hypothesis(transcript.text, truncated=cut_short)


def _origin(piece: Piece) -> str:
    with_remark = {"ctc": FALLBACK, "silence": UNSURE}
    return with_remark.get(piece.decoded_by, piece.decoded_by) if piece.remark else piece.decoded_by
