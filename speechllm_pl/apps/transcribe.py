"""`speechllm transcribe`: audio files in, text out."""

import json
import re
import sys
from pathlib import Path
from typing import Literal

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from speechllm_pl.apps.ranks import device_of
from speechllm_pl.apps.recognition import Precision, recognize
from speechllm_pl.core.audio_folder import audio_files, no_file
from speechllm_pl.core.audio_sources import runs_in_shell
from speechllm_pl.core.errors import UserError, printable
from speechllm_pl.core.promised_audio import broken_promise
from speechllm_pl.core.sampling_rates import implausible_rate
from speechllm_pl.data.utterance import read
from speechllm_pl.models.features import SAMPLING_RATE
from speechllm_pl.training.recognizer import not_finite
from speechllm_pl.training.restore import restore

SURROGATE = re.compile("[\ud800-\udfff]")
"""What Python makes of a byte in a file's name that is no UTF-8; JSON has it as an escape."""

SHORTEST_SECONDS = 0.1
"""Of a word; a frame of the encoder has 0.08."""

AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aiff", ".aif"}


def transcribe(
    files: list[str],
    checkpoint: str,
    format: Literal["text", "json"] = "text",
    language: str = "und",
    max_seconds: float = 30.0,
    max_duration: float = 60.0,
    device: str = "auto",
    precision: Precision | None = None,
    llm: str | None = None,
) -> None:
    """Print what is said in audio files; one line a file.

    Args:
        files: audio files, or folders of them.
        checkpoint: of either stage.
        format: text, or one JSON object a line.
        language: code for an instruction that names the language.
        max_seconds: longer files are refused.
        max_duration: seconds of audio a batch.
        device: where to compute: cpu, cuda, cuda:1; auto is a GPU where there is one.
        precision: of the computation; default is that of training.
        llm: folder or name of the LLM, where it has moved since training.
    """
    paths, missing = find_audio(files)
    module = restore(checkpoint, llm=llm, device=device_of(device))
    cuts, refused = _open_all(paths, language, max_seconds)
    refused = missing + refused
    for cut in cuts:
        if cut.duration < SHORTEST_SECONDS:
            print(f"warning: {printable(cut.id)}: lasts {cut.duration:.3f} s, too short for a word", file=sys.stderr)
    texts: dict[str, str] = {}
    if cuts:
        recognized = recognize(module, cuts, max_duration, precision=precision)
        for id_, hypothesis in zip(recognized.ids, recognized.hypotheses(module.stage), strict=True):
            if problem := not_finite([id_], [hypothesis], module.stage):
                refused.append(problem)
                continue
            texts[id_] = hypothesis.text
            if hypothesis.truncated:
                why = "was ended in a loop" if hypothesis.looped else "met its length cap and may be cut short"
                print(f"warning: {printable(id_)}: the text {why}", file=sys.stderr)
        refused += [f"{id_}: cannot be decoded" for id_ in recognized.skipped]
    for cut in cuts:
        if cut.id in texts:
            print(_line(cut, texts[cut.id], format))
    if refused:
        raise UserError(f"{len(refused)} of {len(cuts) + len(refused)} files refused: " + "; ".join(refused))


def find_audio(names: list[str]) -> tuple[list[Path], list[str]]:
    """Folders stand for the audio files below them → files, and what was refused, which is told at once.

    What is no file in a folder is left out and named.

    Raises:
        UserError: nothing is left.
    """
    paths: list[Path] = []
    refused: list[str] = []
    for name in names:
        why = no_file(name)
        if why == "a folder":
            found = audio_files(Path(name), AUDIO)
            for skipped in found.skipped:
                print(f"left out {printable(skipped)}", file=sys.stderr)
            paths += found.files
            why = "" if found.files else f"holds no audio files ({', '.join(sorted(AUDIO))})"
            refused += [f"folder {name} {why}"] if why else []
        elif why:
            refused.append(f"audio file {name} {why if why == 'does not exist' else f'is no file ({why})'}")
        else:
            paths.append(Path(name))
    if not paths:
        raise UserError("; ".join(refused) + ": correct the paths")
    for each in refused:
        print(f"left out {printable(each)}", file=sys.stderr)
    return paths, refused


def _open_all(paths: list[Path], language: str, max_seconds: float) -> tuple[list[Cut], list[str]]:
    cuts, refused = [], []
    for path in paths:
        try:
            cuts.append(_cut(path, language, max_seconds))
        except UserError as error:
            refused.append(str(error))
    return cuts, refused


def _cut(path: Path, language: str, max_seconds: float) -> Cut:
    recording = _recording(path)
    if recording.duration == 0:
        raise UserError(f"{path}: lasts 0 seconds: record it again")
    if recording.duration > max_seconds:
        raise UserError(
            f"{path}: lasts {recording.duration:.0f} s, and the limit is {max_seconds:.0f} s: split it first"
            " (the model was trained on short utterances; --max_seconds raises the limit)"
        )
    if wrong := implausible_rate(recording.sampling_rate):
        raise UserError(f"{path}: {wrong}")
    if recording.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    cut = recording.to_cut().with_id(str(path))
    segment = SupervisionSegment(cut.id, recording.id, 0, cut.duration, text="", language=language)
    cut.supervisions = [segment]
    _check_samples(cut)
    return cut


def _check_samples(cut: Cut) -> None:
    try:
        read(cut)
    except UserError as error:
        raise UserError(f"{error}: record or convert it again") from error
    except Exception as error:  # whatever a decoder throws
        raise UserError(f"{cut.id}: its header can be read but not its samples: copy or record it again") from error


def _recording(path: Path) -> Recording:
    if runs_in_shell(str(path)):
        raise UserError(f"{path}: a shell would interpret this name: rename the file")
    try:
        broken = broken_promise(path)
        recording = Recording.from_file(path, recording_id=str(path))
    except Exception as error:  # whatever a decoder throws
        raise UserError(f"{path}: not audio that can be decoded here: convert it to WAV or FLAC") from error
    if broken:
        raise UserError(f"{path}: truncated, {broken}: copy or record it again")
    return recording


def _line(cut: Cut, text: str, format: str) -> str:
    if format == "json":
        row = {"file": cut.id, "seconds": round(cut.duration, 3), "text": text}
        return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(row, ensure_ascii=False))
    return f"{printable(cut.id)}: {printable(text)}"
