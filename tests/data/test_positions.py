"""Transcripts are tokenised once, and what a batch takes of the LLM's input is what the prompt builder makes of it."""

import errno
import fcntl
import json
import math
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SPLITS, deleted_while_mapped

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.data import manifest, positions
from speechllm_pl.data.augmentation import PerturbSpeed
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.data.positions import LlmInput, count_tokens
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.llm_finetuning import LlmFinetuning

WORDS = [len(text.split()) for text in SPLITS["train"]]


class Counter:
    """Counts words, notes what it was asked for, and fails after so many texts."""

    def __init__(self, fails_after: int = 99):
        self.asked: list[str] = []
        self.fails_after = fails_after

    def __call__(self, texts: Sequence[str]) -> list[int]:
        if len(self.asked) + len(texts) > self.fails_after:
            raise KeyboardInterrupt
        self.asked += texts
        return [len(text.split()) for text in texts]


@pytest.fixture
def large(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A manifest whose index is kept, opened anew at every call; texts are counted three at once."""
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes((corpus / "train.jsonl.gz").read_bytes())
    monkeypatch.setattr(manifest, "LARGE", 0)
    monkeypatch.setattr(positions, "AT_ONCE", 3)
    return lambda: read_manifest(path)


def test_tokens_of_a_small_manifest_are_counted_in_memory_once_for_each_tokenizer(corpus: Path) -> None:
    cuts, counter = read_manifest(corpus / "train.jsonl.gz"), Counter()
    assert count_tokens(cuts, counter, "x").tolist() == WORDS
    assert count_tokens(cuts, counter, "x").tolist() == WORDS
    assert counter.asked == list(SPLITS["train"])
    assert count_tokens(cuts, lambda texts: [1] * len(texts), "y").tolist() == [1] * len(WORDS)


def test_tokens_of_a_large_manifest_are_counted_once_for_each_tokenizer(large: Callable) -> None:
    first, second, other = Counter(), Counter(), Counter()
    assert count_tokens(large(), first, "x").tolist() == WORDS
    assert count_tokens(large(), second, "x").tolist() == WORDS
    assert count_tokens(large(), other, "y").tolist() == WORDS
    assert (len(first.asked), len(second.asked), len(other.asked)) == (8, 0, 8)
    kept = {path.name for path in large().index_folder.glob("*tokens*")}
    assert kept == {"tokens-x.npy", "tokens-y.npy"}


def test_counting_that_was_interrupted_is_continued(large: Callable) -> None:
    with pytest.raises(KeyboardInterrupt):
        count_tokens(large(), Counter(fails_after=7), "x")
    assert not (large().index_folder / "tokens-x.npy").exists()
    counter = Counter()
    assert count_tokens(large(), counter, "x").tolist() == WORDS
    assert counter.asked == list(SPLITS["train"][6:])


def test_a_machine_that_counts_later_leaves_alone_what_another_has_mapped(
    large: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between machines no lock holds: one counts from beginning to end while the other is at it."""
    cuts, mapped = large(), []
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)

    def slow(texts: Sequence[str]) -> list[int]:
        if not mapped:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "gethostname", lambda: "faster")
                mapped.append(count_tokens(cuts, Counter(), "x"))
        return Counter()(texts)

    assert count_tokens(cuts, slow, "x").tolist() == mapped[0].tolist() == WORDS
    assert not deleted_while_mapped(cuts.index_folder)
    assert {path.name for path in cuts.index_folder.glob("*tokens*")} == {"tokens-x.npy"}


def test_processes_of_a_machine_count_at_once_where_the_file_system_has_no_locks(
    large: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One counts from beginning to end while the other is at it; the counts are kept."""
    cuts, other = large(), []

    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_lock)

    def slow(texts: Sequence[str]) -> list[int]:
        if not other:
            other.append(count_tokens(cuts, Counter(), "x"))
        return Counter()(texts)

    assert count_tokens(cuts, slow, "x").tolist() == other[0].tolist() == WORDS
    assert "tokens-x.lock cannot be locked" in caplog.text
    assert {path.name for path in cuts.index_folder.glob("*tokens*")} == {"tokens-x.npy"}


def test_counts_that_cannot_be_kept_are_made_all_the_same(large: Callable, caplog: pytest.LogCaptureFixture) -> None:
    cuts = large()
    (cuts.index_folder / "tokens-x.lock").mkdir()  # stands for a folder that cannot be written to
    assert count_tokens(cuts, Counter(), "x").tolist() == WORDS
    assert "cannot be kept" in caplog.text


def test_counts_are_kept_where_there_are_no_hard_links(large: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(positions.os, "link", refused)
    first, second = Counter(), Counter()
    assert count_tokens(large(), first, "x").tolist() == WORDS
    assert count_tokens(large(), second, "x").tolist() == WORDS
    assert (len(first.asked), len(second.asked)) == (8, 0)
    assert [path.name for path in large().index_folder.glob("*tokens*")] == ["tokens-x.npy"]


# as stage 2 counts


@pytest.fixture
def stage_2(ctc_tokenizer: CtcTokenizer, llm_folder: Path) -> Callable[..., LlmFinetuning]:
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64)
    return lambda **options: LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=encoder, **options)


@pytest.mark.parametrize(("stride", "instruction"), [(1, ""), (3, "one two {language}"), (12, "")])
def test_positions_are_those_that_the_prompt_builder_fills(
    corpus: Path, stage_2: Callable[..., LlmFinetuning], stride: int, instruction: str
) -> None:
    module = stage_2(bridge=ProjectorConfig(stride), instruction=instruction)
    module.configure_model()
    data = SpeechDataModule(str(corpus), max_duration=6.0, num_buckets=3, max_tokens=90)
    data.llm_input = module.llm_input
    buckets = data.buckets("train")
    assert buckets.positions is not None
    for batch in data.train_dataloader():
        text = pad_tokens(module.llm_tokenizer.encode(batch.texts))
        with torch.no_grad():
            audio = module.model.listen(batch.audio)
            columns = module.model.prompt(audio, module.recognizer.instruction(batch.languages), text)
        rows = [int(id_.removeprefix("train-")) for id_ in batch.ids]
        before = columns.mask.shape[1] - columns.labels.shape[1]
        assert buckets.positions.audio[rows].max() == before
        assert buckets.positions.text[rows].max() + 1 == columns.labels.shape[1]
        assert columns.mask.numel() <= 90
        assert buckets.of[rows].min() == buckets.of[rows].max()


# what the LLM has no positions for


@pytest.fixture
def short_llm(llm_folder: Path, tmp_path: Path) -> Callable[[int], str]:
    """The LLM with so many positions."""

    def limited(positions: int) -> str:
        folder = tmp_path / f"llm-{positions}"
        shutil.copytree(llm_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        return str(folder)

    return limited


def taken(seconds: float, text: str) -> int:
    """Positions at stride 1: frames of 10 ms that begin while 32 ms are left, halved three times; BOS and the words."""
    frames = (round(seconds * 16_000) - 512) // 160 + 1
    return math.ceil(frames / 8) + 1 + len(text.split())


@pytest.mark.parametrize("max_tokens", [None, 90])
def test_utterances_beyond_the_llms_positions_are_left_out_and_told(
    corpus: Path,
    ctc_tokenizer: CtcTokenizer,
    short_llm: Callable[[int], str],
    caplog: pytest.LogCaptureFixture,
    max_tokens: int | None,
) -> None:
    caplog.set_level("INFO")
    cuts = list(read_manifest(corpus / "train.jsonl.gz"))
    expected = {cut.id: taken(cut.duration, cut.supervisions[0].text) for cut in cuts}
    limit = sorted(expected.values())[-3]  # of the three longest, one just fits
    data = SpeechDataModule(str(corpus), max_duration=6.0, num_buckets=3, max_tokens=max_tokens)
    data.llm_input = LlmFinetuning(ctc_tokenizer, llm=short_llm(limit), bridge=ProjectorConfig(1)).llm_input
    kept = {id_ for id_, positions in expected.items() if positions <= limit}
    heard = [id_ for batch in data.train_dataloader() for id_ in batch.ids]
    assert len(heard) == len(set(heard))
    assert set(heard) == kept
    told = [record.message for record in caplog.records if "left out" in record.message]
    assert told == [
        f"left out {8 - len(kept)} of 8 training utterances that take more than the LLM's {limit} positions,"
        f" the longest {max(expected.values())}: give a longer --model.bridge.stride, or cut them"
    ]


def test_an_llm_that_has_positions_for_no_utterance_is_refused(
    corpus: Path, ctc_tokenizer: CtcTokenizer, short_llm: Callable[[int], str]
) -> None:
    data = SpeechDataModule(str(corpus))
    data.llm_input = LlmFinetuning(ctc_tokenizer, llm=short_llm(3), bridge=ProjectorConfig(1)).llm_input
    with pytest.raises(
        UserError, match=r"every training utterance takes more than the LLM's 3 positions, the shortest"
    ):
        data.cuts("train")


def test_what_augmentation_adds_counts_as_positions(
    corpus: Path, ctc_tokenizer: CtcTokenizer, short_llm: Callable[[int], str]
) -> None:
    cuts = read_manifest(corpus / "train.jsonl.gz")
    longest = max(taken(cut.duration, cut.supervisions[0].text) for cut in cuts)
    for augmentations, left_out in ((), 0), ([PerturbSpeed(factors=(0.5,))], 1):
        data = SpeechDataModule(str(corpus), augmentations=augmentations)
        data.llm_input = LlmFinetuning(
            ctc_tokenizer, llm=short_llm(longest + len(augmentations)), bridge=ProjectorConfig(1)
        ).llm_input
        assert (len(data.cuts("train")) < 8) == bool(left_out)


def test_without_a_limit_no_transcript_is_tokenised_for_it(corpus: Path) -> None:
    counter = Counter()
    data = SpeechDataModule(str(corpus))
    data.llm_input = LlmInput(lambda seconds: seconds.astype(int), lambda language: 0, counter, "x")
    assert len(data.cuts("train")) == 8
    assert not counter.asked


def test_auto_is_what_so_many_seconds_of_speech_take(stage_2: Callable[..., LlmFinetuning], corpus: Path) -> None:
    for stride, embeddings in ((1, 1000), (3, 334)):
        data = SpeechDataModule(str(corpus), max_duration=80.0, max_tokens="auto")
        data.llm_input = stage_2(bridge=ProjectorConfig(stride)).llm_input
        positions = data.buckets("train").positions
        assert positions is not None
        assert positions.most == pytest.approx(embeddings + 5 * 80, abs=1)


def test_stage_2_tells_the_data_how_to_count(stage_2: Callable[..., LlmFinetuning], corpus: Path) -> None:
    data = SpeechDataModule(str(corpus), max_tokens=400, llm_input=stage_2().llm_input)
    assert data.buckets("train").positions is not None
    assert data.buckets("dev").positions is None


def test_stage_1_has_no_positions(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"data\.max_tokens.*leave it out"):
        SpeechDataModule(str(corpus), max_tokens=400).buckets("train")


def test_tokenizers_have_digests_of_their_own(stage_2: Callable[..., LlmFinetuning], tmp_path: Path) -> None:
    ours = stage_2().llm_tokenizer
    again, other = stage_2().llm_tokenizer, stage_2().llm_tokenizer
    other.tokenizer.add_tokens(["nine"])
    assert ours.digest == again.digest != other.digest
    texts = ["one two", "", "eight nine ten"]
    assert ours.count(texts) == [len(ids) for ids in ours.encode(texts)] == [2, 0, 3]


def test_numpy_and_the_encoder_agree_on_embeddings(stage_2: Callable[..., LlmFinetuning]) -> None:
    seconds = np.random.default_rng(0).uniform(0.01, 30, 200).astype(np.float32)
    module = stage_2(bridge=ProjectorConfig(2))
    module.configure_model()
    found = module.llm_input.audio(seconds)
    for each, embeddings in zip(seconds[:20].tolist(), found[:20].tolist(), strict=True):
        samples = round(each * 16_000)
        with torch.no_grad():
            audio = module.model.listen(Padded(torch.zeros(1, samples), torch.tensor([samples])))
        assert int(audio.lengths[0]) == embeddings
