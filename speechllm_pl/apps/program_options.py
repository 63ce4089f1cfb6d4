"""Options of our own programs. Nothing that takes seconds to import stands between a typo and its answer."""

from dataclasses import dataclass
from typing import Literal

from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE
from speechllm_pl.core.published_normalizers import Normalizer
from speechllm_pl.recognition.decoding_options import DecodingOptions, PausesBy, Precision, check_lengths

Format = Literal["text", "txt", "json", "srt", "vtt", "tsv", "ctm", "all"]
"""Forms of transcripts: lines for a terminal, or files of these suffixes."""


@dataclass(frozen=True, kw_only=True)
class RecognitionOptions(DecodingOptions):
    """Options of recognising audio with a trained model."""

    max_duration: float = 60.0
    """Seconds of audio in a batch."""

    device: str = "auto"
    """Device of the computation: cpu, cuda, cuda:1; auto is a GPU if there is one."""

    precision: Precision | None = None
    """Precision of the computation; by default that of training."""

    llm: str | None = None
    """Folder or name of the LLM, if it has moved since training."""

    encoder: str | None = None
    """Folder or name of the pretrained encoder, if it has moved since training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths(None, self.max_duration)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RecognitionOptions):
    """Score checkpoints and write scores.json, hypotheses.jsonl, manifest.jsonl and alignments-<system>.txt."""

    checkpoint: str | list[str]
    """Checkpoint of stage 1 or of stage 2, or '[A,B]' of both for a table side by side."""

    cuts: str
    """Lhotse manifest with transcripts."""

    output: str | None = None
    """Folder for the results; by default the run folder of the last checkpoint."""

    devices: int | Literal["auto"] = 1
    """Number of processes that share the cuts, each with a whole model on a device; auto is one for every GPU, or as
    many as the CPUs have room for. Processes that torchrun or srun has started are taken as they are."""

    num_workers: int | Literal["auto"] = "auto"
    """Number of processes that read audio ahead for each device; auto is as many as there are CPUs for beside a GPU,
    and none beside a CPU, of which reading takes a few per cent."""

    long_form: bool = False
    """Divide recordings at pauses as transcribe does, instead of decoding each as it is."""

    guard: bool = False
    """Doubt texts of the LLM as transcribe does, whose way of dividing recordings it takes too."""

    normalizer: Normalizer = "none"
    """Published normaliser under which the error rates are given besides: whisper has rules for English and basic ones
    for other languages, whisper-basic these alone. It needs the extra `normalizer`."""

    max_wer: float | None = None
    """Fail (status 2) if the average WER of a system is above this fraction, or recordings could not be read."""

    max_unread: float = 0.0
    """Share of recordings, 0 to 1, that may be unread if `max_wer` is given."""

    allow_command_sources: bool = False
    """Run the shell commands and open the addresses that the manifest names instead of files. Only for a manifest that
    you trust."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_unread <= 1:
            raise UserError(f"--max_unread {self.max_unread} is a share: give 0 to 1")
        if (self.long_form or self.guard) and self.num_workers != "auto":
            raise UserError(
                "num_workers has no effect where recordings are divided: leave it out, or long_form and guard"
            )
        if not self.checkpoint:
            raise UserError("no checkpoint to evaluate: train first (make pretrain-ctc, make finetune), or name one")
        if isinstance(self.num_workers, int) and self.num_workers < 0:
            raise UserError(f"num_workers {self.num_workers}: give 0 or more, or auto")

    @property
    def checkpoints(self) -> list[str]:
        return [self.checkpoint] if isinstance(self.checkpoint, str) else self.checkpoint


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions(RecognitionOptions):
    """Print what is said in audio files; one line a file, when it is there."""

    files: list[str]
    """Audio files, or folders of them; with stream one file, or - for standard input."""

    checkpoint: str
    """Checkpoint of either stage."""

    format: Format = "text"
    """Form of the output. Printed are text, a line with name and text, and json, an object a line; the others are
    contents of files. all writes every one of them and needs output_dir."""

    output_dir: str | None = None
    """Folder to write a file to for each audio file, instead of printing. Files that are there and not older than their
    audio are left as they are, so that the same command continues after an interruption."""

    output_template: str = "{folder}/{name}"
    """Path of an output file below output_dir, without its suffix. {folder} is the audio file's folder below the one
    that was given, or below the deepest one common to several, {name} its name, {suffix} the end of that."""

    language: str = UNKNOWN_LANGUAGE
    """Language of the recordings, one that was trained on, for an instruction that names it."""

    max_seconds: float | None = None
    """Duration in seconds above which a recording is divided at pauses; by default that of the longest utterance of the
    training."""

    pauses: PausesBy = "ctc"
    """What finds the pauses: ctc, where the CTC head hears nothing and it is quiet, or silero, Silero's voice activity
    detector, for recordings with music or other sounds. It needs the extra `vad`."""

    guard: bool = True
    """Doubt texts of the LLM that loop, are too short or too long, or differ from what the CTC head heard: ask again,
    and then take the CTC head's text. Take sounds that cannot be speech, or of which that is unsure, for silence."""

    stream: bool = False
    """Transcribe one file, or raw PCM on standard input (mono, S16_LE), while it is heard: print the words of the CTC
    head at once, and the text of a piece when a pause ends it."""

    sample_rate: int = SAMPLING_RATE
    """Sampling rate in Hz of standard input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_stream()
        check_lengths(self.max_seconds, self.max_duration)
        if self.output_dir is None and self.format == "all":
            raise UserError("format all writes files: give --output_dir too")
        if self.output_dir is None and self.output_template != "{folder}/{name}":
            raise UserError("output_template has no effect without output_dir: give both")

    def _check_stream(self) -> None:
        if "-" in self.files and not self.stream:
            raise UserError("- is standard input, which is transcribed while it is heard: give --stream too")
        if self.sample_rate != SAMPLING_RATE and self.files != ["-"]:
            raise UserError("sample_rate is that of standard input (--stream -): files have their own")
        if not self.stream:
            return
        if len(self.files) != 1:
            raise UserError(f"stream takes one file or standard input (-), not {len(self.files)}: give one")
        if self.output_dir:
            raise UserError("stream prints what it hears: leave out --output_dir")
        if self.format not in ("text", "json"):
            raise UserError(f"stream prints text or json, not {self.format}: give one of them as --format")
        if self.max_duration != type(self).max_duration:
            raise UserError("max_duration is of batches, and a stream has none: leave out --max_duration")


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Put the error rates of several evaluations into one table."""

    scores: str
    """Folder with the scores of each system on each corpus, which `evaluate --output scores/CORPUS/SYSTEM` wrote."""

    output: str | None = None
    """File to write; by default beside the folder, with its name and the suffix md."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write report.html, a page that needs nothing else, into the run folder."""

    run: str
    """Folder of the run, with pretrain_ctc, finetune and scores.json as `make demo` leaves them."""

    cuts: str | None = None
    """Manifest of the utterance to align; by default the test set of the run."""

    utterances: int = 12
    """Number of transcripts to show."""

    llm: str | None = None
    """Folder or name of the LLM, if it has moved since training."""

    encoder: str | None = None
    """Folder or name of the pretrained encoder, if it has moved since training."""

    allow_command_sources: bool = False
    """Run the shell commands and open the addresses that the manifest names instead of files. Only for a manifest that
    you trust."""

    def __post_init__(self) -> None:
        if self.utterances < 0:
            raise UserError(f"utterances {self.utterances}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class DataReportOptions:
    """Write an HTML page about prepared data, with players, and its figures as JSON beside it."""

    root: str
    """Folder of train, dev and test manifests, as `make data` leaves it."""

    checkpoint: str | None = None
    """Checkpoint of either stage, whose CTC head compares transcripts with recordings."""

    output: str | None = None
    """Path of the page; by default report.html in `root`. The figures are beside it, with the suffix .json."""

    sample: int = 4000
    """Number of recordings to decode, equally many of each split and language; all if there are fewer."""

    seed: int = 0
    """Seed of the sample."""

    worst: int = 20
    """Number of utterances to show of each kind of fault."""

    player_seconds: float = 15.0
    """Longest audio of a player in seconds; each second adds about 4 kB to the page."""

    max_duration: float = 60.0
    """Seconds of audio in a batch for the checkpoint."""

    device: str = "auto"
    """Device of the checkpoint: cpu, cuda, cuda:1; auto is a GPU if there is one."""

    llm: str | None = None
    """Folder or name of the LLM, if it has moved since training."""

    encoder: str | None = None
    """Folder or name of the pretrained encoder, if it has moved since training."""

    allow_command_sources: bool = False
    """Run the shell commands and open the addresses that the manifests name instead of files. Only for manifests that
    you trust."""

    def __post_init__(self) -> None:
        if min(self.sample, self.worst + 1, self.seed + 1) < 1 or not (self.player_seconds > 0 < self.max_duration):
            raise UserError("sample, player_seconds and max_duration must be above 0, worst and seed 0 or more")


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Average the weights of a run's checkpoints, which often lowers the error rate a little."""

    run: str
    """Folder of the run."""

    last: int | None = None
    """Number of checkpoints to average, the newest ones."""

    best: int | None = None
    """Number of checkpoints to average, those with the lowest word error rate on dev."""

    output: str | None = None
    """File to write; by default checkpoints/average.ckpt in the run's folder."""

    def __post_init__(self) -> None:
        if (self.last is None) == (self.best is None):
            raise UserError(
                "say which checkpoints: --last 5 for the newest, or --best 5 for the lowest error rates on dev"
            )


@dataclass(frozen=True, kw_only=True)
class ConsolidateOptions:
    """Write what was trained as one folder of safetensors, which evaluate, transcribe and finetune read."""

    checkpoint: str
    """Checkpoint of either stage, sharded or not."""

    output: str
    """Folder to write."""

    merge: bool = False
    """Put the LLM into the folder too, with LoRA in its weights, as a plain Hugging Face model in `llm`."""

    llm: str | None = None
    """Folder or name of the LLM, if it has moved since training."""

    encoder: str | None = None
    """Folder or name of the pretrained encoder, if it has moved since training."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Print the memory and time that a configuration of `fit` needs, and what to change if it does not fit."""

    gpu: str = "A100-80"
    """Name of a GPU, such as A100-40 or H200, or its memory in GiB."""

    gpus: int | None = None
    """Number of GPUs of all nodes; by default the trainer's devices, or 1."""

    gpus_per_node: int | None = None
    """Number of GPUs of a node; by default the trainer's devices if they are a number, or 8."""

    utilisation: float = 0.4
    """Share of the datasheet's bf16 rate that training reaches."""

    cpus_per_task: int = 8
    """Number of CPUs of a process, if data.num_workers is auto: all but one read, eight at most."""

    host_memory: bool = False
    """Print only the value of --mem for sbatch, if it is known."""

    evaluation: bool = False
    """Let that be the memory of evaluating what the configuration trains."""

    tokens_per_second: float = 5.0
    """Tokens of text in a second of speech."""

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation {self.utilisation:g} is a share: give more than 0 and at most 1")
        for name in ("gpus", "gpus_per_node"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UserError(f"--{name} {number}: give at least 1")
        if self.evaluation and not self.host_memory:
            raise UserError("evaluation has no effect without host_memory: give both")


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Download the LLM and the pretrained encoder that a configuration of `fit` names, unless they are here."""
