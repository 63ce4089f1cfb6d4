"""Hostile input, each in a process of its own: nothing is lost silently, run, waited for, or ends in a traceback."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import bad_audio
import bad_checkpoints
import bad_configs
import bad_manifests
import bad_tables
import pytest
from bench import Bench, saved
from command import SERVER
from hypothesis import HealthCheck, given, settings
from trials import Result, tried

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning

SEEDED = {"audio": bad_audio.trial, "checkpoints": bad_checkpoints.trial}
DRAWN = {"manifests": bad_manifests, "tables": bad_tables, "configs": bad_configs}
SUBJECTS = (*SEEDED, *DRAWN)
"""What is made from a seed, and what Hypothesis draws and shrinks."""

OF_SAMPLE = {"audio": 20, "checkpoints": 8, "manifests": 10, "tables": 8, "configs": 4}
OF_ALL = {"audio": 1000, "checkpoints": 300, "manifests": 300, "tables": 300, "configs": 100}
"""Inputs of each subject."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes that have imported everything, to fork from."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=SERVER) as workers:
        yield workers


@pytest.fixture(scope="module")
def bench(
    corpus: Path,
    ctc_tokenizer: CtcTokenizer,
    tokenizer_file: Path,
    llm_folder: Path,
    small_encoder: ConformerConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    ctc = saved(CtcPretraining(ctc_tokenizer, encoder=small_encoder), folder / "ctc.ckpt")
    llm = saved(LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder), folder / "llm.ckpt")
    return Bench(ctc, llm, corpus / "test-0.wav", tokenizer_file)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_sample_ends_as_it_may(pool: ProcessPoolExecutor, bench: Bench, subject: str) -> None:
    _try(pool, bench, subject, OF_SAMPLE[subject])


@pytest.mark.long
@pytest.mark.parametrize("subject", SUBJECTS)
def test_all_end_as_they_may(
    pool: ProcessPoolExecutor, bench: Bench, subject: str, capsys: pytest.CaptureFixture
) -> None:
    results: list[Result] = []
    try:
        _try(pool, bench, subject, OF_ALL[subject], results)
    finally:
        with capsys.disabled():
            print(f"\n{subject}: {len(results)} inputs\n{_counted(results)}")
    assert len(results) >= OF_ALL[subject]


def _try(
    pool: ProcessPoolExecutor, bench: Bench, subject: str, inputs: int, results: list[Result] | None = None
) -> None:
    """Try so many inputs of a subject; `results` get how each ended."""
    results = [] if results is None else results
    if subject in SEEDED:
        found = pool.map(tried, [partial(SEEDED[subject], bench, seed) for seed in range(inputs)])
        for result in found:
            results.append(result)
        problems = [f"seed {seed}: {result.problem}" for seed, result in enumerate(results) if result.problem]
        assert not problems, "\n\n".join([f"{len(problems)} problems", *problems[:20]])
        return

    @settings(
        max_examples=inputs,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(DRAWN[subject].INPUTS)
    def ends_as_it_may(drawn: object) -> None:
        result = pool.submit(tried, partial(DRAWN[subject].trial, bench, drawn)).result()
        results.append(result)
        if result.problem:
            raise _problem(f"{result.ended}, {result.kind}")(result.problem)

    ends_as_it_may()


@cache
def _problem(how: str) -> type[AssertionError]:
    """An error of its own for each, so that Hypothesis shrinks one input of each."""
    return type(how, (AssertionError,), {})


def _counted(results: list[Result]) -> str:
    """A line for each kind: how many ended how."""
    kinds = sorted({_kind(result) for result in results})
    rows = [(kind, Counter(result.ended for result in results if _kind(result) == kind)) for kind in kinds]
    rows.append(("all", Counter(result.ended for result in results)))
    ends = {kind: ", ".join(f"{count} {ended}" for ended, count in of.most_common()) for kind, of in rows}
    return "\n".join(f"  {kind:<24} {of.total():>5}: {ends[kind]}" for kind, of in rows)


def _kind(result: Result) -> str:
    return result.kind.partition(":")[0]
