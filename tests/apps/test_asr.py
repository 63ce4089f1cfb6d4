"""`from speechllm_pl import load`: the README's example, what is accepted, and that nothing is imported before."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, speak
from lhotse.augmentation import Resample
from tone_words import ToneRecognizer

from speechllm_pl import load
from speechllm_pl.apps.asr import Asr
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.transcriber import Transcriber
from speechllm_pl.recognition.transcript import Transcript

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(untrained_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").write_bytes(untrained_llm.read_bytes())
    return folder


@pytest.fixture(scope="module")
def asr(run: Path) -> Asr:
    return load(run, device="cpu")


@pytest.fixture
def executed(run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Execute the example of a file, where the run and the recording are that it names; return its variables."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "finetune").symlink_to(run)
    (tmp_path / "talk.wav").write_bytes((corpus / "train-4.wav").read_bytes())
    monkeypatch.setattr("speechllm_pl.load", partial(load, guard=False))  # which takes tones for no speech

    def execute(file: str) -> dict[str, Any]:
        (example,) = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)
        names: dict[str, Any] = {}
        exec(example, names)
        return names

    return execute


def test_the_example_of_the_guide_works(executed, capsys: pytest.CaptureFixture) -> None:
    asr = executed("docs/transcribing.md")["asr"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [asr.transcribe("talk.wav").text, "left out: missing.wav does not exist: correct the path"]
    assert printed[0]


def test_the_example_of_the_readme_works(executed, capsys: pytest.CaptureFixture) -> None:
    names = executed("README.md")
    assert isinstance(names["talk"], Transcript)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{names['talk'].text} {names['talk'].decoded_by}"
    assert names["talk"].words
    assert len(printed) == 1 + len(names["talk"].words)


def test_files_arrays_and_lists_have_the_same_transcripts(run: Path, corpus: Path) -> None:
    asr = load(run, device="cpu", guard=False)  # which takes tones for no speech
    path = corpus / "train-4.wav"
    samples, _ = soundfile.read(path, dtype="float32")
    expected = asr.transcribe(path)
    assert expected.words
    assert expected.decoded_by == "llm"
    stereo = np.stack([samples, samples])
    for audio in (path, str(path), samples, samples.astype(np.float64), torch.from_numpy(samples), stereo):
        assert asr.transcribe(audio) == expected
    assert asr.transcribe([samples]) == [expected]
    assert asr.transcribe([]) == []
    several = asr.transcribe([corpus / "train-0.wav", path])  # their confidence may differ by rounding
    assert [found.text for found in several] == [asr.transcribe(corpus / "train-0.wav").text, expected.text]
    assert expected.seconds == pytest.approx(len(samples) / RATE)


def test_other_rates_are_resampled() -> None:
    asr = Asr(Transcriber(ToneRecognizer(longest_seconds=5.0), limits=None), "x")
    samples = speak("one two three").astype(np.float32)
    half = Resample(RATE, RATE // 2)(samples[None], RATE)[0]
    found = asr.transcribe(half, sampling_rate=RATE // 2)
    assert found.seconds == pytest.approx(len(samples) / RATE, abs=0.001)
    assert found.text == "one two three" != asr.transcribe(half).text


def test_what_cannot_be_transcribed_costs_no_other_transcript(asr: Asr, corpus: Path) -> None:
    good = corpus / "train-4.wav"
    given = [good, "missing.wav", np.full(100, np.nan), good]
    first, missing, infinite, last = asr.transcribe(given, errors="return")
    expected = asr.transcribe(good)
    assert isinstance(first, Transcript)
    assert isinstance(last, Transcript)
    assert first.text == last.text == expected.text
    assert isinstance(missing, UserError)
    assert "missing.wav does not exist" in str(missing)
    assert isinstance(infinite, UserError)
    assert "recording 2 has samples that are not finite" in str(infinite)
    assert isinstance(asr.transcribe("missing.wav", errors="return"), UserError)
    with pytest.raises(UserError, match=r"missing\.wav"):
        asr.transcribe(given)
    with pytest.raises(UserError, match="recording 1 is of type int"):
        asr.transcribe([good, 1], errors="return")  # type: ignore
    with pytest.raises(UserError, match="errors 'ignore' is unknown: give raise or return"):
        asr.transcribe(given, errors="ignore")  # type: ignore


@pytest.mark.parametrize(
    ("audio", "options", "told"),
    [
        (np.zeros(100, np.int16), {}, r"recording 0 is int16 of shape \(100,\): give floats"),
        (np.zeros((1, 2, 3)), {}, "float64 of shape"),
        (np.full(100, np.nan), {}, "not finite: replace NaN and infinity, or leave it out"),
        (np.zeros(100), {"sampling_rate": 5}, "implausible sampling rate 5 Hz"),
        ("missing.wav", {}, "missing.wav does not exist: correct the path"),
        (ROOT, {}, r"is no file \(a folder\): give the files in it"),
        (np.zeros((100, 2)), {}, r"float64 of shape \(100, 2\): give .* which for soundfile's \(N, channel\) is \.T"),
        ([0.0, 0.1], {}, r"recording 0 is of type float: give a path or an array of floats"),
        ((np.zeros(100), 16_000), {}, "recording 1 is of type int: .* sampling_rate=… for the rate"),
        ([[0.0, 0.1]], {}, "recording 0 is of type list"),
        (None, {}, "audio is of type NoneType: give"),
    ],
)
def test_what_cannot_be_transcribed_is_an_error(asr: Asr, audio: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        asr.transcribe(audio, **options)


def test_options_of_decoding_are_those_of_the_command(run: Path) -> None:
    asr = load(run, device="cpu", decoder="beam", num_beams=2, max_seconds=3.0, guard=False)
    assert (asr.transcriber.options.decoder, asr.transcriber.options.num_beams) == ("beam", 2)
    assert (asr.transcriber.longest_seconds, asr.transcriber.limits) == (3.0, None)
    with pytest.raises(UserError, match="ctc_weight 2"):
        load(run, device="cpu", decoder="beam", ctc_weight=2.0)


def test_a_runs_folder_stands_for_its_best_checkpoint(run: Path, untrained_llm: Path, tmp_path: Path) -> None:
    ours, theirs = (Recognizer.load(path).model.state_dict() for path in (run, untrained_llm))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "missing")


def test_the_package_imports_nothing_before_it_is_asked() -> None:
    program = "import sys, speechllm_pl; print(*{'torch', 'lhotse', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_lightning_is_not_imported_to_load_a_recogniser() -> None:
    program = "import sys; from speechllm_pl import load; print('lightning' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"decoder": "typo"}, "decoder 'typo' is unknown: give one of greedy, speculative"),
        ({"decodr": "beam"}, "load has no option 'decodr': those of decoding are decoder, "),
        ({"max_seconds": -1.0}, "max_seconds -1 leaves no room for a word"),
        ({"max_seconds": 1e-6}, "max_seconds 1e-06 leaves no room"),
        ({"max_seconds": 0.0}, "max_seconds 0 leaves no room"),
        ({"batch_seconds": 0.0}, "batches of 0 seconds hold no audio: give more than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(run: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load(run, device="cpu", **options)


def test_a_language_of_no_training_is_refused_and_one_without_effect_told(asr: Asr) -> None:
    with pytest.raises(UserError, match="language 'klingon' is unknown: give one of"):
        asr.transcribe(speak("one"), language="klingon")
    with pytest.warns(UserWarning, match="language de has no effect"):
        asr.transcribe(speak("one"), language="de")


def test_a_decoder_without_effect_is_told(untrained_ctc: Path) -> None:
    with pytest.warns(UserWarning, match="decoder beam has no effect: the checkpoint is of stage 1"):
        load(untrained_ctc, device="cpu", decoder="beam")
    with pytest.warns(UserWarning, match="accept_entropy 0.5, llm x have no effect: the checkpoint is of stage 1"):
        load(untrained_ctc, device="cpu", accept_entropy=0.5, llm="x")
