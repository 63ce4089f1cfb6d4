"""Bad input through the real commands: one line that names the thing and the remedy, status 2, no traceback."""

import contextlib
import gzip
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, speak
from lhotse import CutSet

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import printable

CONF = Path(__file__).parents[2] / "conf"


def fit(stage: str, small_config: Path, run: Path, *more: object) -> list[str]:
    files = (CONF / f"{stage}.yaml", CONF / "size" / "tiny.yaml", small_config)
    return ["fit", *(part for file in files for part in ("--config", str(file))), "--run", str(run), *map(str, more)]


# recordings


@pytest.mark.parametrize("rate", [8000, 8012, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channel_count_is_transcribed(
    speechllm, untrained_ctc: Path, tmp_path: Path, rate: int, channels: int
) -> None:
    path = tmp_path / "tone.wav"
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)
    done = speechllm("transcribe", path, "--checkpoint", untrained_ctc, "--format", "json")
    assert done.status == 0, done.err
    row = json.loads(done.out)
    assert (row["file"], row["seconds"]) == (str(path), pytest.approx(1.0, abs=0.001))
    assert isinstance(row["text"], str)


@pytest.mark.parametrize("stage", ["ctc", "llm"])
@pytest.mark.parametrize("samples", [1, 100, 800, 1600], ids=lambda samples: f"{samples} samples")
def test_the_shortest_files_are_transcribed_or_refused(
    speechllm, untrained_ctc: Path, untrained_llm: Path, tmp_path: Path, stage: str, samples: int
) -> None:
    path = tmp_path / "short.wav"
    soundfile.write(path, speak("one")[800 : 800 + samples], RATE)
    done = speechllm("transcribe", path, "--checkpoint", untrained_ctc if stage == "ctc" else untrained_llm)
    if done.status:
        assert str(path) in done.error()
    else:
        assert done.out.startswith(f"{path}: ")
        assert ("too short for a word" in done.err) == (samples < 1600)


def truncated(path: Path) -> None:
    soundfile.write(path, speak("one two three"), RATE)
    path.write_bytes(path.read_bytes()[:-10_000])


def infected(path: Path) -> None:
    samples = speak("one")
    samples[1000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def cut_ogg(path: Path, subtype: str = "VORBIS") -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * RATE)  # several pages
    soundfile.write(path, noise, RATE, format="OGG", subtype=subtype)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def cut_aiff(path: Path) -> None:
    soundfile.write(path, speak("one two three"), RATE, format="AIFF")
    path.write_bytes(path.read_bytes()[:-10_000])


def minute(path: Path, format: str = "WAV", channels: int = 1, last: float = 0.0) -> None:
    samples = np.tile(speak("one two"), 80)[:, None].repeat(channels, 1) * [1, -1][:channels]
    samples[-1, 0] += last
    soundfile.write(path, samples, RATE, format=format, subtype="FLOAT" if format == "WAV" else None)


def infected_late(path: Path) -> None:
    minute(path, last=np.nan)


def opposite(path: Path) -> None:
    minute(path, channels=2)


def cut_minute(path: Path) -> None:
    minute(path)
    path.write_bytes(path.read_bytes()[:-100_000])


def damaged_minute(path: Path) -> None:
    minute(path, "FLAC")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    path.write_bytes(content)


BROKEN = {
    "a 0-byte file": (lambda path: path.write_bytes(b""), "not audio"),
    "a text named wav": (lambda path: path.write_text("these are words\n" * 100), "not audio"),
    "a truncated file": (truncated, "truncated"),
    "a truncated Ogg": (cut_ogg, "truncated"),
    "a truncated Opus": (lambda path: cut_ogg(path, "OPUS"), "truncated"),
    "a truncated AIFF": (cut_aiff, "truncated"),
    "a header of 2 GHz": (lambda path: soundfile.write(path, speak("one"), 2_000_000_000), "implausible sampling rate"),
    "a header of 3 kHz": (lambda path: soundfile.write(path, speak("one"), 3_000), "implausible sampling rate"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), RATE), "0 seconds"),
    "a sample that is NaN": (infected, "not finite"),
    "half an hour": (lambda path: soundfile.write(path, np.zeros(1800 * 100), 100), "implausible sampling rate"),
    "a NaN after a minute": (infected_late, "not finite"),
    "a minute of opposite channels": (opposite, "cancel each other"),
    "a minute that was cut off": (cut_minute, "truncated"),
    "a damaged minute": (damaged_minute, "not its samples"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_recording_is_refused_and_the_others_transcribed(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path, kind: str
) -> None:
    make, why = BROKEN[kind]
    broken, good = tmp_path / "broken.wav", corpus / "test-0.wav"
    make(broken)
    done = speechllm("transcribe", good, broken, "--checkpoint", untrained_ctc)
    assert f"1 of 2 files refused: {broken}: " in done.error()
    assert why in done.error()
    assert ": " in done.error().split(why)[1]  # what to do about it
    assert done.out.startswith(f"{good}: ")
    assert str(broken) not in done.out


def test_a_language_that_nobody_knows_is_refused(speechllm, untrained_llm: Path, corpus: Path, tmp_path: Path) -> None:
    """A checkpoint that does not name its languages knows those of the project."""
    given = ("transcribe", corpus / "test-0.wav", "--checkpoint", untrained_llm, "--language")
    for code in ("xx", "", "DE", "de,en"):
        line = speechllm(*given, code).error()
        assert f"--language {code!r} is unknown: give one of de, en, es, fr, it, nl, pl, pt, or leave it out" in line
    found = torch.load(untrained_llm, weights_only=True)
    found["speechllm"]["settings"]["instruction"] = "{language}:"
    torch.save(found, tmp_path / "told.ckpt")
    done = speechllm("transcribe", corpus / "test-0.wav", "--checkpoint", tmp_path / "told.ckpt", "--language", "de")
    assert done.status == 0, done.err
    assert "no effect" not in done.err


def test_what_is_longer_than_the_limit_is_transcribed_in_pieces(speechllm, untrained_ctc: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(speak("one two"), 4), RATE)
    for limit, several in ((2, True), (4, False)):
        done = speechllm("transcribe", path, "--checkpoint", untrained_ctc, "--max_seconds", limit, "--format", "json")
        assert done.status == 0, done.err
        pieces = json.loads(done.out)["pieces"]
        assert (len(pieces) > 1) == several
        assert all(piece["end_seconds"] - piece["start_seconds"] <= limit for piece in pieces)
    told = speechllm("transcribe", path, "--checkpoint", untrained_ctc, "--max_seconds", 0.5).error()
    assert "max_seconds 0.5 leaves no room for a word: give at least 1" in told


def test_files_and_folders_without_audio_are_named(speechllm, untrained_ctc: Path, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing.wav", tmp_path / "empty"
    empty.mkdir()
    told = speechllm("transcribe", missing, empty, "--checkpoint", untrained_ctc).error()
    assert f"{missing} does not exist: correct the path; " in told
    assert f"{empty} holds no audio files (.wav, " in told
    assert told.endswith("): correct the path")


def test_a_path_that_does_not_exist_costs_that_path_only_and_is_told_first(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path, monkeypatch
) -> None:
    missing, good = tmp_path / "missing.wav", corpus / "test-0.wav"
    done = speechllm("transcribe", missing, good, "--checkpoint", untrained_ctc)
    assert f"left out audio file {missing} does not exist: correct the path" in done.err
    assert f"1 of 2 files refused: audio file {missing} does not exist: correct the path" in done.error()
    assert done.out.startswith(f"{good}: ")
    monkeypatch.setattr("speechllm_pl.apps.transcribe.Recognizer.load", None)  # no model is loaded
    assert f"{missing} does not exist" in speechllm("transcribe", missing, "--checkpoint", untrained_ctc).error()


def test_what_is_no_file_in_a_folder_is_skipped_and_named(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    good = tmp_path / "sub" / "good.wav"
    good.parent.mkdir()
    good.write_bytes((corpus / "test-0.wav").read_bytes())
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "null.wav").symlink_to("/dev/null")
    (tmp_path / "gone.wav").symlink_to("nowhere")
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as taken, contextlib.chdir(tmp_path):
        taken.bind("socket.wav")
    done = speechllm("transcribe", tmp_path, "--checkpoint", untrained_ctc)
    assert done.status == 0, done.err
    assert done.out.startswith(f"{good}: ")
    assert len(done.out.splitlines()) == 1
    for name, why in {
        "fifo.wav": "a FIFO",
        "loop.wav": "a link that leads nowhere",
        "null.wav": "a device",
        "gone.wav": "a link that leads nowhere",
        "socket.wav": "a socket",
        "sub/back": "a link back to a folder",
    }.items():
        assert f"left out {tmp_path / name}: {why}" in done.err
    line = speechllm("transcribe", good, tmp_path / "fifo.wav", "--checkpoint", untrained_ctc).error()
    assert f"{tmp_path / 'fifo.wav'} is no file (a FIFO): correct the path" in line


def test_a_manifests_fifo_is_never_opened(speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path) -> None:
    first, second = CutSet.from_file(corpus / "test.jsonl.gz")
    os.mkfifo(tmp_path / "fifo.wav")
    first.recording.sources[0].source = str(tmp_path / "fifo.wav")
    CutSet.from_cuts([first, second]).to_file(tmp_path / "cuts.jsonl.gz")
    done = speechllm(
        "evaluate", "--checkpoint", untrained_ctc, "--cuts", tmp_path / "cuts.jsonl.gz", "--output", tmp_path / "scores"
    )
    assert f"1 recordings could not be read: {first.id}" in done.err


def test_names_cannot_write_to_the_terminal(speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path) -> None:
    names = ["a\nb.wav", "c\x1b[2Jd.wav", "e\u2028f.wav", "g\x7f\x9bh.wav", "größe ß.wav"]
    for name in names:
        (tmp_path / name).write_bytes((corpus / "test-0.wav").read_bytes())
    done = speechllm("transcribe", tmp_path, "--checkpoint", untrained_ctc)
    assert done.status == 0, done.err
    shown = {line.removeprefix(f"{tmp_path}/").split(": ")[0] for line in done.out.splitlines()}
    assert shown == {"a\\nb.wav", "c\\x1b[2Jd.wav", "e\\u2028f.wav", "g\\x7f\\x9bh.wav", "größe ß.wav"}
    rows = speechllm("transcribe", tmp_path, "--checkpoint", untrained_ctc, "--format", "json").out.split("\n")
    assert {Path(json.loads(row)["file"]).name for row in rows if row} == set(names)
    assert all(row == printable(row) for row in rows)
    odd = tmp_path / "\udcff\x1b.wav"  # a byte that is no UTF-8
    odd.write_text("no audio")
    assert "\\udcff\\x1b.wav: not audio" in speechllm("transcribe", odd, "--checkpoint", untrained_ctc).error()


# checkpoints


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", "half"], ids=["missing", "empty", "text", "cut"])
def test_a_checkpoint_that_cannot_be_read_is_named(
    speechllm, untrained_ctc: Path, corpus: Path, small_config: Path, tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "bad.ckpt"
    if content is not None:
        whole = untrained_ctc.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    why = "does not exist: train first" if content is None else "is damaged"
    for command in (
        ["transcribe", corpus / "test-0.wav", "--checkpoint", path],
        ["evaluate", "--checkpoint", path, "--cuts", corpus / "test.jsonl.gz", "--output", tmp_path / "scores"],
        fit("pretrain_ctc", small_config, tmp_path / "run", "--ckpt_path", path),
    ):
        line = speechllm(*command).error()
        assert str(path) in line
        assert why in line


def test_a_checkpoint_of_another_project_is_refused(speechllm, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    line = speechllm("transcribe", corpus / "test-0.wav", "--checkpoint", path).error()
    assert f"{path} is not a checkpoint of this project" in line


@pytest.mark.parametrize("stage", ["ctc", "llm"])
def test_text_from_logits_that_are_not_finite_is_an_error(
    speechllm, untrained_ctc: Path, untrained_llm: Path, corpus: Path, tmp_path: Path, stage: str
) -> None:
    """The weights are finite, but too large to compute with."""
    found = torch.load(untrained_ctc if stage == "ctc" else untrained_llm, weights_only=True)
    name = {"ctc": "model.head.weight", "llm": "model.projector.linear.weight"}[stage]
    found["state_dict"][name][:] = 3e38
    torch.save(found, tmp_path / "huge.ckpt")
    audio = corpus / "test-0.wav"
    # The guard would take what an untrained CTC head hears for silence.
    done = speechllm("transcribe", audio, "--checkpoint", tmp_path / "huge.ckpt", "--guard", "false")
    assert f"the {stage} logits of 1 recordings are not finite" in done.error()
    assert str(audio) in done.error()
    assert done.out == ""
    given = ("--cuts", corpus / "test.jsonl.gz", "--output", tmp_path / "scores")
    line = speechllm("evaluate", "--checkpoint", tmp_path / "huge.ckpt", *given).error()
    assert f"the {stage} logits of 2 recordings are not finite, so no text was recognised: test-" in line
    assert not (tmp_path / "scores").exists()


def test_a_checkpoint_of_the_wrong_stage_is_refused(
    speechllm, untrained_ctc: Path, untrained_llm: Path, llm_folder: Path, small_config: Path, tmp_path: Path
) -> None:
    start = ["--model.llm", llm_folder, "--model.encoder_checkpoint", untrained_llm]
    line = speechllm(*fit("finetune", small_config, tmp_path, *start)).error()
    assert f"checkpoint {untrained_llm} is of stage 2" in line
    assert "stage 1 (make pretrain-ctc) is needed" in line
    line = speechllm(*fit("pretrain_ctc", small_config, tmp_path, "--ckpt_path", untrained_llm)).error()
    assert "is of stage 2" in line


def test_stage_two_needs_a_stage_one(speechllm, llm_folder: Path, small_config: Path, tmp_path: Path) -> None:
    given = fit("finetune", small_config, tmp_path, "--model.llm", llm_folder)
    assert "--model.encoder_checkpoint" in speechllm(*given).error()
    pattern = tmp_path / "*" / "best.ckpt"
    line = speechllm(*given, "--model.encoder_checkpoint", pattern).error()
    assert f"no checkpoint matches {pattern}: run `make pretrain-ctc`" in line


def test_an_encoder_of_another_size_is_refused(
    speechllm, untrained_ctc: Path, llm_folder: Path, small_config: Path, tmp_path: Path
) -> None:
    given = ["--model.llm", llm_folder, "--model.encoder_checkpoint", untrained_ctc, "--model.encoder.num_blocks", 3]
    assert "encoder." in speechllm(*fit("finetune", small_config, tmp_path, *given)).error()


# tokenizer and LLM


def test_a_tokenizer_of_another_size_is_refused(
    speechllm, untrained_ctc: Path, llm_folder: Path, small_config: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceTrainer

    other = tmp_path / "other"
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["one two three four"] * 10),
        model_prefix=str(other),
        vocab_size=13,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    given = ["--model.tokenizer", f"{other}.model", "--model.encoder.dropout", 0.1]
    start = ["--model.llm", llm_folder, "--model.encoder_checkpoint", untrained_ctc]
    sizes = f"trained with ({ctc_tokenizer.vocab_size - 1}"
    assert sizes in speechllm(*fit("finetune", small_config, tmp_path, *given, *start)).error()
    assert (
        sizes in speechllm(*fit("pretrain_ctc", small_config, tmp_path, *given, "--ckpt_path", untrained_ctc)).error()
    )


@pytest.mark.parametrize("content", [None, b"", b"\xff\x00\xfe"], ids=["missing", "empty", "bytes"])
def test_a_tokenizer_that_cannot_be_read_is_named(
    speechllm, small_config: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "bad.model"
    if content is not None:
        path.write_bytes(content)
    line = speechllm(*fit("pretrain_ctc", small_config, tmp_path, "--model.tokenizer", path)).error()
    assert f"tokenizer {path}" in line
    assert "data_prep.tokenizer" in line


def test_a_missing_llm_is_named(
    speechllm, untrained_ctc: Path, untrained_llm: Path, corpus: Path, small_config, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    for command in (
        fit("finetune", small_config, tmp_path, "--model.llm", gone, "--model.encoder_checkpoint", untrained_ctc),
        ["transcribe", corpus / "test-0.wav", "--checkpoint", untrained_llm, "--llm", gone],
        [
            "evaluate",
            "--checkpoint",
            untrained_llm,
            "--llm",
            gone,
            "--cuts",
            corpus / "test.jsonl.gz",
            "--output",
            tmp_path,
        ],
    ):
        assert f"LLM folder {gone} does not exist" in speechllm(*command).error()


def test_settings_that_exclude_each_other_are_refused(
    speechllm, untrained_ctc: Path, llm_folder: Path, small_config: Path, tmp_path: Path
) -> None:
    start = ["--model.llm", llm_folder, "--model.encoder_checkpoint", untrained_ctc]
    line = speechllm(*fit("finetune", small_config, tmp_path, *start, "--model.train_llm", "true")).error()
    assert "set lora_r to 0" in line


# manifests


@pytest.mark.parametrize(
    ("setting", "said"), [(("lr", -1), "model.optimizer: Invalid learning rate"), (("betas", "[2,0.9]"), "beta")]
)
def test_values_that_an_optimizer_cannot_have_are_refused(
    speechllm, small_config: Path, tmp_path: Path, setting: tuple[str, object], said: str
) -> None:
    name, value = setting
    given = ("--config", CONF / "pretrain_ctc.yaml", "--config", CONF / "size" / "tiny.yaml", "--config", small_config)
    line = speechllm("fit", *given, "--run", tmp_path, f"--model.optimizer.{name}", value).error()
    assert said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["evaluate", "fit"])
@pytest.mark.parametrize("line", ["{", "{}", '["a list"]', ""], ids=["cut short", "no cut", "a list", "blank"])
def test_a_broken_line_of_a_manifest_is_numbered(
    speechllm, untrained_ctc: Path, corpus: Path, small_config: Path, tmp_path: Path, command: str, line: str
) -> None:
    lines = gzip.decompress((corpus / "train.jsonl.gz").read_bytes()).decode().splitlines()
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    given = {
        "evaluate": ["evaluate", "--checkpoint", untrained_ctc, "--cuts", path, "--output", tmp_path],
        "fit": fit("pretrain_ctc", small_config, tmp_path / "run", "--data.root", tmp_path, "--data.train", path.name),
    }[command]
    assert f"{path}, line 3: not a Lhotse cut" in speechllm(*given).error()


@pytest.mark.parametrize("content", [None, b"", b"no gzip"], ids=["missing", "empty", "not compressed"])
def test_a_manifest_that_cannot_be_read_is_named(
    speechllm, untrained_ctc: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "train.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    given = ["evaluate", "--checkpoint", untrained_ctc, "--cuts", path, "--output", tmp_path]
    assert f"manifest {path} " in speechllm(*given).error()


# devices


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_a_device_that_is_not_there_is_named(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path, device: str
) -> None:
    cuts = corpus / "test.jsonl.gz"
    for command in (
        ["transcribe", corpus / "test-0.wav", "--checkpoint", untrained_ctc],
        ["evaluate", "--checkpoint", untrained_ctc, "--cuts", cuts, "--output", tmp_path],
    ):
        assert f"device {device} " in speechllm(*command, "--device", device).error()


# augmentation


AUGMENTATION = "data: {{augmentations: [{{class_path: speechllm_pl.data.augmentation.{0}, init_args: {1}}}]}}"


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [
        ("PerturbGain", "{probability: 1.5}", "PerturbGain in data.augmentations: probability 1.5"),
        ("AddNoise", "{folder: noise, snr_db: [20, 0]}", "snr_db [20.0, 0.0] is reversed"),
        ("AddNoise", "{folder: no/such/folder}", "AddNoise in data.augmentations: folder no/such/folder"),
        ("AddNoise", "{folder: noise, snr: [0, 20]}", "snr"),
        ("AddNois", "{folder: noise}", "AddNois"),
    ],
)
def test_a_wrong_augmentation_is_told_before_training(
    speechllm, small_config: Path, tmp_path: Path, name: str, values: str, named: str
) -> None:
    (tmp_path / "augment.yaml").write_text(AUGMENTATION.format(name, values))
    arguments = fit("pretrain_ctc", small_config, tmp_path / "run", "--config", tmp_path / "augment.yaml")
    assert named in speechllm(*arguments).error()
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_values_that_no_class_takes_are_named(speechllm, small_config: Path, tmp_path: Path) -> None:
    """The values stand in a file: jsonargparse looks at options of the command line itself."""
    path = tmp_path / "wrong.yaml"
    for text, said in {
        "model: {init_args: {encoder: null}}": "model.init_args.encoder is null: give it values, or leave it out",
        "model: {init_args: {spec_augment: false}}": "model.init_args.spec_augment is False: give it values",
        "model: {init_args: {optimizer: null}}": "model.init_args.optimizer is null: give it values",
        "trainer: {strategy: unknown}": "the configuration cannot be used: You selected an invalid strategy name",
    }.items():
        path.write_text(text)
        assert said in speechllm(*fit("pretrain_ctc", small_config, tmp_path / "run", "--config", path)).error()


def test_a_checkpoint_that_is_no_file_is_never_opened(speechllm, corpus: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.ckpt")
    (tmp_path / "zero.ckpt").symlink_to("/dev/zero")
    for path, why in ((tmp_path / "fifo.ckpt", "a FIFO"), (tmp_path / "zero.ckpt", "a device")):
        line = speechllm("transcribe", corpus / "test-0.wav", "--checkpoint", path).error()
        assert f"checkpoint {path} is no file ({why}): correct the path" in line


def test_the_checkpoint_of_a_broken_tokenizer_is_named(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path
) -> None:
    found = torch.load(untrained_ctc, weights_only=True)
    found["speechllm"]["settings"]["tokenizer"] = b"junk"
    torch.save(found, path := tmp_path / "junk.ckpt")
    line = speechllm("transcribe", corpus / "test-0.wav", "--checkpoint", path).error()
    assert f"checkpoint {path}: tokenizer is not a SentencePiece model" in line
