"""Error rates pooled over batches and processes, against jiwer on everything at once."""

from pathlib import Path

import jiwer
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from speechllm_pl.core.metrics import ScoredUtterance, score
from speechllm_pl.data.batch import Batch
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.training.error_rates import PooledErrorRates, summary_line
from speechllm_pl.training.validation import _warn_if_truncated

UTTERANCES = [
    ("en", "one two three four", "one too three"),
    ("en", "five", "five six"),
    ("de", "eins zwei", "eins zwei"),
    ("en", "a longer sentence with more words in it", "a longer sentence with words in"),
    ("de", "drei", ""),
    ("und", "no known language", "no known languages"),
    ("de", "vier fünf sechs sieben", "vier fünf sex sieben"),
]


def scored(chosen: list[int]) -> list[ScoredUtterance]:
    languages, references, hypotheses = zip(*(UTTERANCES[n] for n in chosen), strict=True) if chosen else ([],) * 3
    return score([f"u{n}" for n in chosen], languages, references, hypotheses)


def rates_of_jiwer() -> dict[str, dict[str, float]]:
    """jiwer on all utterances of a language together; the average is the plain mean."""
    expected = {}
    for language in ("de", "en", "und"):
        references = [reference for code, reference, _ in UTTERANCES if code == language]
        hypotheses = [hypothesis for code, _, hypothesis in UTTERANCES if code == language]
        expected[language] = {"wer": jiwer.wer(references, hypotheses), "cer": jiwer.cer(references, hypotheses)}
    average = {kind: sum(rates[kind] for rates in expected.values()) / 3 for kind in ("wer", "cer")}
    return {"average": average, **expected}


def flat(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{language} {kind}": value for language, row in rates.items() for kind, value in row.items()}


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3, 4, 5, 6]], [[6], [5, 4, 3], [], [2, 1, 0]]])
def test_pooled_rates_are_jiwers_on_everything_together(batches: list[list[int]]) -> None:
    metric = PooledErrorRates()
    for batch in batches:
        metric.update(scored(batch))
    assert flat(metric.compute()) == pytest.approx(flat(rates_of_jiwer()))


def test_after_a_reset_nothing_is_left() -> None:
    metric = PooledErrorRates()
    metric.update(scored([0, 1]))
    metric.reset()
    metric.update(scored([2]))
    assert set(metric.compute()) == {"average", "de"}
    assert metric.compute()["average"]["wer"] == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_epoch_without_readable_utterances_has_no_languages() -> None:
    assert set(PooledErrorRates().compute()) == {"average"}


def test_the_summary_names_every_language() -> None:
    metric = PooledErrorRates()
    metric.update(scored(list(range(7))))
    line = summary_line("ctc", metric.compute())
    assert "mean over languages" in line
    assert all(f"{language} " in line for language in ("de", "en", "und"))


SHARES = {
    "unequal": [[[0, 1], [2]], [[3, 4, 5, 6]]],
    "the second rank has none": [[[0, 1, 2, 3], [4, 5, 6]], []],
    "the first rank has none": [[], [[0, 1, 2, 3, 4, 5, 6]]],
}


def _compute_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, shares in SHARES.items():
        metric = PooledErrorRates()
        for batch in shares[rank]:
            metric.update(scored(batch))
        torch.save(metric.compute(), f"{folder}/{name} {rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    # Forked, as data loaders' workers are: importing everything anew takes longer than all else here.
    mp.start_processes(_compute_on_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    for name in SHARES:
        for rank in range(2):
            found = torch.load(tmp_path / f"{name} {rank}.pt", weights_only=True)
            assert flat(found) == pytest.approx(flat(rates_of_jiwer())), name


def test_each_rank_names_its_own_texts_that_were_cut_short(caplog: pytest.LogCaptureFixture) -> None:
    nothing = torch.zeros(0)
    batch = Batch(nothing, nothing, ["", "", ""], ["en"] * 3, ["whole", "long", "loop"], [])
    found = [Hypothesis("a"), Hypothesis("a", truncated=True), Hypothesis("a", truncated=True, looped=True)]
    _warn_if_truncated(batch, found, 3)
    assert [line.rpartition("; ")[2] for line in caplog.messages] == ["cuts on rank 3: long", "cuts on rank 3: loop"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
