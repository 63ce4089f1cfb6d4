"""What many tests share: a tokenizer, a random LLM, a corpus in which words are tones, and the command itself."""

import gzip
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.cut import Cut
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from untrained import save

from speechllm_pl.apps.main import main
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning

torch.set_num_threads(1)
with torch.device("cpu"):  # before a test loads an LLM without `models/llm.py`, which says why
    torch.empty(0)

for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "ARGS"):
    os.environ.pop(name, None)  # of the make that runs the tests: its ARGS are for pytest, not for a make in a test

RATE = 16_000  # Hz
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
SPLITS = {
    "train": (
        "one two three",
        "four five",
        "six seven eight one",
        "two",
        "eight six four two",
        "three one five",
        "seven five three one two",
        "four eight",
    ),
    "dev": ("two four six", "one eight"),
    "test": ("five six", "seven two one"),
}
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")


def speak(text: str) -> np.ndarray:
    """`(N,)` float32 samples: every word is 0.3 s of a tone of its own, and 0.05 s of silence follows it."""
    time = np.arange(int(0.3 * RATE)) / RATE
    gap = np.zeros(int(0.05 * RATE))
    parts = [gap]
    for word in text.split():
        parts += [0.3 * np.sin(2 * np.pi * 250 * 1.5 ** WORDS.index(word) * time), gap]
    return np.concatenate(parts).astype(np.float32)


def write_cut(folder: Path, name: str, samples: np.ndarray, text: str, language: str, rate: int = RATE):
    """A wav file in `folder`, and the cut that describes it."""
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, rate)
    recording = Recording.from_file(path, recording_id=name)
    cut = recording.to_cut().with_id(name)
    cut.supervisions = [SupervisionSegment(name, name, 0, cut.duration, text=text, language=language, speaker="tones")]
    return cut


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train, dev and test manifests: 8, 2 and 2 utterances in two languages."""
    root = tmp_path_factory.mktemp("corpus")
    for split, texts in SPLITS.items():
        cuts = [
            write_cut(root, f"{split}-{number}", speak(text), text, ("en", "de")[number % 2])
            for number, text in enumerate(texts)
        ]
        CutSet.from_cuts(cuts).to_file(root / f"{split}.jsonl.gz")
    return root


def train_tokenizer(sentences: Sequence[str], vocab_size: int, model_type: str = "unigram") -> CtcTokenizer:
    """A SentencePiece model of a few sentences."""
    writer = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_writer=writer,
        vocab_size=vocab_size,
        model_type=model_type,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return CtcTokenizer.from_bytes(writer.getvalue())


@pytest.fixture(scope="session")
def ctc_tokenizer() -> CtcTokenizer:
    """A SentencePiece model of the corpus."""
    return train_tokenizer(SPLITS["train"] * 10, 40)


@pytest.fixture(scope="session")
def letters() -> CtcTokenizer:
    """A SentencePiece model that knows a, b, c and the mark of a word: each letter is a piece."""
    return train_tokenizer(["abc cab bca a b c aa bb cc"] * 20, 5)


def save_llm_tokenizer(folder: Path) -> None:
    """A Hugging Face tokenizer in which every word is a token, after four special ones."""
    names = (*SPECIAL_TOKENS, *WORDS)
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_llm(folder: Path, width: int) -> Path:
    """A random LLaMA with its tokenizer, in a Hugging Face folder."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # large enough for its random choices to differ clearly
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_llm_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM of some ten thousand weights."""
    return save_llm(tmp_path_factory.mktemp("llm"), width=32)


@pytest.fixture(scope="session")
def llm_for_nf4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM as wide as NF4's blocks of 64 weights ask for."""
    return save_llm(tmp_path_factory.mktemp("llm64"), width=64)


@pytest.fixture(scope="session")
def small_encoder() -> ConformerConfig:
    return ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64, kernel_size=5, dropout=0.1)


@pytest.fixture(scope="session")
def untrained_ctc(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of stage 1 with random weights."""
    return save(CtcPretraining(ctc_tokenizer, encoder=small_encoder), tmp_path_factory.mktemp("ctc") / "ctc.ckpt")


@pytest.fixture(scope="session")
def untrained_llm(
    ctc_tokenizer: CtcTokenizer,
    llm_folder: Path,
    small_encoder: ConformerConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint of stage 2 with random weights."""
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder)
    return save(module, tmp_path_factory.mktemp("llm") / "llm.ckpt")


@pytest.fixture(scope="session")
def speechllm_data() -> Path:
    """The folder of real recordings."""
    folder = Path(os.environ.get("SPEECHLLM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real recordings, and {folder} does not exist: name their folder in SPEECHLLM_DATA")
    return folder


def deleted_while_mapped(folder: Path) -> list[str]:
    """Files below `folder` that this process has mapped and that are gone: over NFS it could not read them any more."""
    mapped = (line.split(maxsplit=5)[5:] for line in Path("/proc/self/maps").read_text().splitlines())
    paths = [path for path, *_ in filter(None, mapped) if path.startswith(str(folder))]
    assert paths, f"nothing of {folder} is mapped"
    return [path for path in paths if path.endswith("(deleted)")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first, so that none of several processes is left alone with them at the end."""
    items.sort(key=lambda item: "training" not in item.path.parts)


# the command, run inside the test process: importing its libraries anew would take ten seconds


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    def error(self) -> str:
        """The one line that bad input ends with."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.status == 2, self.err
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def speechllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """`speechllm(argument, ...)` → exit status, stdout, stderr."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["speechllm", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tokenizer_file(ctc_tokenizer: CtcTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(ctc_tokenizer.to_bytes())
    return path


@pytest.fixture(scope="session")
def small_config(corpus: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file to give after those that are shipped: the tones, a tiny encoder, one process, few steps."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(
        f"""
model:
  init_args:
    tokenizer: {tokenizer_file}
    encoder: {{dim: 32, num_blocks: 2, num_heads: 2, ffn_dim: 64, kernel_size: 5, dropout: 0.0}}
trainer:
  accelerator: cpu
  devices: 1
  precision: 32-true
  max_epochs: 2
  check_val_every_n_epoch: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
data: {{root: {corpus}, max_duration: 4.0, num_buckets: 2, num_workers: 0}}
"""
    )
    return path


@pytest.fixture
def profiled_peak() -> Callable[[Callable[[], None]], int]:
    """The most bytes that torch's profiler sees allocated on the CPU while a function runs."""

    def measure(run: Callable[[], None]) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(itertools.accumulate(sizes))

    return measure


def speechlike(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return 0.2 * np.convolve(noise, np.hanning(20) / 10, "same")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of ten cuts in two languages."""
    folder = tmp_path_factory.mktemp("corpus")
    cuts = [
        write_cut(folder, f"ü/{n}.x", speechlike(0.5 + 0.1 * n, n), f"größe {n}", ("en", "de")[n % 2])
        if n != 4
        else write_cut(folder, "other", speechlike(0.9, n, 22_050), "größe 4", "en", rate=22_050)
        for n in range(10)
        if (folder / "ü").mkdir(exist_ok=True) is None
    ]
    CutSet.from_cuts(cuts).to_file(folder / "train.jsonl.gz")
    return folder / "train.jsonl.gz"


@pytest.fixture(scope="session")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings, in folders: short, long, and of another rate with two channels."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(1)
    (folder / "more").mkdir()
    soundfile.write(folder / "short.wav", 0.1 * rng.standard_normal(4_000), RATE)
    soundfile.write(folder / "long.flac", 0.02 * rng.standard_normal(80_000), RATE)
    soundfile.write(folder / "more" / "stereo.wav", 0.1 * rng.standard_normal((44_100, 2)), 22_050)
    (folder / "README.txt").write_text("not audio")
    return folder


@pytest.fixture
def train_lines(corpus: Path) -> list[str]:
    """The corpus's manifest of training data, line by line."""
    with gzip.open(corpus / "train.jsonl.gz", "rt") as file:
        return file.read().splitlines()


@pytest.fixture
def train_cuts(corpus: Path) -> list[Cut]:
    return list(CutSet.from_file(corpus / "train.jsonl.gz"))


@pytest.fixture
def kept_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every manifest counts as large, so that its index is kept beside it."""
    monkeypatch.setattr("speechllm_pl.data.manifest.LARGE", 0)
