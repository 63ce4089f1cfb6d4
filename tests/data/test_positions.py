"""Transcripts are tokenised once, and what a batch takes of the LLM's input is what the prompt builder makes of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SPLITS, deleted_while_mapped
from lightning import Trainer

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.tokenizer import CtcTokenizer
from speechllm_pl.data import manifest, positions
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.manifest import read_manifest
from speechllm_pl.data.positions import LlmInput, count_tokens
from speechllm_pl.models.conformer import ConformerConfig
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


def test_tokens_of_a_small_manifest_are_counted_in_memory(corpus: Path) -> None:
    counter = Counter()
    assert count_tokens(read_manifest(corpus / "train.jsonl.gz"), counter, "x").tolist() == WORDS
    assert counter.asked == list(SPLITS["train"])


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
    monkeypatch.setattr(positions.fcntl, "flock", lambda *_: None)

    def slow(texts: Sequence[str]) -> list[int]:
        if not mapped:
            with monkeypatch.context() as patch:
                patch.setattr(positions.socket, "gethostname", lambda: "faster")
                mapped.append(count_tokens(cuts, Counter(), "x"))
        return Counter()(texts)

    assert count_tokens(cuts, slow, "x").tolist() == mapped[0].tolist() == WORDS
    assert not deleted_while_mapped(cuts.index_folder)
    assert {path.name for path in cuts.index_folder.glob("*tokens*")} == {"tokens-x.npy"}


def test_counts_that_cannot_be_kept_are_made_all_the_same(large: Callable, caplog: pytest.LogCaptureFixture) -> None:
    cuts = large()
    (cuts.index_folder / "tokens-x.lock").mkdir()  # stands for a folder that cannot be written to
    assert count_tokens(cuts, Counter(), "x").tolist() == WORDS
    assert "cannot be kept" in caplog.text


# as stage 2 counts


@pytest.fixture
def stage_2(ctc_tokenizer: CtcTokenizer, llm_folder: Path) -> Callable[..., LlmFinetuning]:
    encoder = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64)
    return lambda **options: LlmFinetuning(ctc_tokenizer, str(llm_folder), encoder, **options)


@pytest.mark.parametrize(("stride", "instruction"), [(1, ""), (3, "one two {language}"), (12, "")])
def test_positions_are_those_that_the_prompt_builder_fills(
    corpus: Path, stage_2: Callable[..., LlmFinetuning], stride: int, instruction: str
) -> None:
    module = stage_2(stride=stride, instruction=instruction)
    module.configure_model()
    data = SpeechDataModule(str(corpus), max_duration=6.0, num_buckets=3, max_tokens=90)
    data.llm_input = module.llm_input()
    buckets = data.buckets("train")
    assert buckets.positions is not None
    for batch in data.train_dataloader():
        text = module.text_tokens(module.llm_tokenizer.encode(batch.texts))
        with torch.no_grad():
            audio = module.model.listen(batch.waveforms, batch.lengths)
            columns = module.model.prompt(audio, module._instruction(batch), text)
        rows = [int(id_.removeprefix("train-")) for id_ in batch.ids]
        before = columns.mask.shape[1] - columns.labels.shape[1]
        assert buckets.positions.audio[rows].max() == before
        assert buckets.positions.text[rows].max() + 1 == columns.labels.shape[1]
        assert columns.mask.numel() <= 90
        assert buckets.of[rows].min() == buckets.of[rows].max()


def test_auto_is_what_so_many_seconds_of_speech_take(stage_2: Callable[..., LlmFinetuning], corpus: Path) -> None:
    for stride, embeddings in ((1, 1000), (3, 334)):
        data = SpeechDataModule(str(corpus), max_duration=80.0, max_tokens="auto")
        data.llm_input = stage_2(stride=stride).llm_input()
        positions = data.buckets("train").positions
        assert positions is not None
        assert positions.most == pytest.approx(embeddings + 5 * 80, abs=1)


def test_stage_2_tells_the_data_how_to_count(stage_2: Callable[..., LlmFinetuning], corpus: Path) -> None:
    module, data = stage_2(), SpeechDataModule(str(corpus), max_tokens=400)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    module.setup("fit")
    assert isinstance(data.llm_input, LlmInput)
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
    module = stage_2(stride=2)
    module.configure_model()
    found = module.llm_input().audio(seconds)
    for each, embeddings in zip(seconds[:20].tolist(), found[:20].tolist(), strict=True):
        samples = round(each * 16_000)
        with torch.no_grad():
            audio = module.model.listen(torch.zeros(1, samples), torch.tensor([samples]))
        assert int(audio.lengths[0]) == embeddings
