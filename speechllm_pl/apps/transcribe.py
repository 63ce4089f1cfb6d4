"""`speechllm transcribe`: audio files in, text out."""

import json
import sys
from pathlib import Path
from typing import Literal

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from speechllm_pl.apps.ranks import device_of
from speechllm_pl.apps.recognition import Precision, recognize
from speechllm_pl.core.audio_sources import runs_in_shell
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.promised_audio import broken_promise
from speechllm_pl.core.sampling_rates import implausible_rate
from speechllm_pl.data.utterance import read
from speechllm_pl.models.features import SAMPLING_RATE
from speechllm_pl.training.restore import restore

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
    module = restore(checkpoint, llm=llm, device=device_of(device))
    cuts, refused = _open_all(_expand(files), language, max_seconds)
    texts: dict[str, str] = {}
    if cuts:
        recognized = recognize(module, cuts, max_duration, precision=precision)
        for id_, hypothesis in zip(recognized.ids, recognized.hypotheses(module.stage), strict=True):
            texts[id_] = hypothesis.text
            if hypothesis.truncated:
                why = "was ended in a loop" if hypothesis.looped else "met its length cap and may be cut short"
                print(f"warning: {id_}: the text {why}", file=sys.stderr)
        refused += [f"{id_}: cannot be decoded" for id_ in recognized.skipped]
    for cut in cuts:
        if cut.id in texts:
            print(_line(cut, texts[cut.id], format))
    if refused:
        raise UserError(f"{len(refused)} of {len(cuts) + len(refused)} files refused: " + "; ".join(refused))


def _expand(files: list[str]) -> list[Path]:
    """Folders stand for the audio files below them.

    Raises:
        UserError: a path does not exist, or a folder holds no audio.
    """
    paths: list[Path] = []
    for name in files:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO)
            if not inside:
                raise UserError(f"folder {name} holds no audio files ({', '.join(sorted(AUDIO))})")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"audio file {name} does not exist")
    return paths


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
        return json.dumps(row, ensure_ascii=False)
    return f"{cut.id}: {text}"
