"""Hostile input, each in a process of its own: nothing is lost silently, run, waited for, or ends in a traceback."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import bad_audio
import pytest
from bench import Bench, saved
from command import SERVER
from trials import Result, tried

from speechllm_pl.core.tokenizer import CtcTokenizer
from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning

SUBJECTS = {"audio": bad_audio.trial}
OF_SAMPLE = {"audio": 50}
OF_ALL = {"audio": 2000}
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
    ctc = saved(CtcPretraining(ctc_tokenizer, small_encoder), folder / "ctc.ckpt")
    llm = saved(LlmFinetuning(ctc_tokenizer, str(llm_folder), small_encoder), folder / "llm.ckpt")
    return Bench(ctc, llm, corpus / "test-0.wav", tokenizer_file)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_sample_ends_as_it_may(pool: ProcessPoolExecutor, bench: Bench, subject: str) -> None:
    makes = [partial(SUBJECTS[subject], bench, seed) for seed in range(OF_SAMPLE[subject])]
    problems = [result.problem for result in pool.map(tried, makes) if result.problem]
    assert not problems, "\n\n".join(problems)


@pytest.mark.long
@pytest.mark.parametrize("subject", SUBJECTS)
def test_all_end_as_they_may(
    pool: ProcessPoolExecutor, bench: Bench, subject: str, capsys: pytest.CaptureFixture
) -> None:
    seeds = {pool.submit(tried, partial(SUBJECTS[subject], bench, seed)): seed for seed in range(OF_ALL[subject])}
    results: dict[int, Result] = {}
    for done in as_completed(seeds):
        results[seeds[done]] = done.result()
        if len(results) % 100 == 0 or len(results) == len(seeds):
            ends = Counter(result.ended for result in results.values())
            with capsys.disabled():
                print(f"{subject}: {len(results)} of {len(seeds)} inputs, {dict(ends.most_common())}")
    problems = [f"seed {seed}: {results[seed].problem}" for seed in sorted(results) if results[seed].problem]
    assert not problems, "\n\n".join([f"{len(problems)} problems", *problems[:20]])
