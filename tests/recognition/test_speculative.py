"""Drafts change how often the LLM is asked and nothing else: texts are greedy ones, in every architecture and batch."""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import merged_lora
from speechllm_pl.models.speech_llm import Audio, SpeechLLM
from speechllm_pl.recognition import llm_text
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.llm_text import generate
from speechllm_pl.recognition.text_end import TextEnd, TextEnds

sys.path.append(str(Path(__file__).parents[1] / "models"))
from test_architectures import CONFIGS, small_llm
from test_speech_llm import build

FRAMES = [20, 4, 11, 15, 6]


class Plain:
    """Token numbers for a text, so that nothing is hidden by decoding."""

    pad_id = 0

    @staticmethod
    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [list(map(int, text.split())) for text in texts]

    @staticmethod
    def decode(ids: list[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module", params=[name for name in CONFIGS if name != "mistral"])  # its window is too short
def model(request: pytest.FixtureRequest, small_encoder: ConformerConfig) -> Iterator[SpeechLLM]:
    """Model with merged LoRA that does something, and an end token that is likely enough to be said."""
    model = build(small_llm(request.param), small_encoder, lora_r=4)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    with merged_lora(model.eval().llm):
        yield model


def batch(model: SpeechLLM, frames: list[int], seed: int = 0) -> tuple[Audio, Padded]:
    generator = torch.Generator().manual_seed(seed)
    width = model.text_embeddings.shape[1]
    embeddings = torch.zeros(len(frames), max(frames), width)
    for row, count in zip(embeddings, frames, strict=True):
        row[:count] = torch.randn(count, width, generator=generator)
    lengths = torch.tensor(frames)
    instruction = pad_tokens([[5, 6][: place % 3] for place in range(len(frames))])
    return Audio(embeddings, lengths, embeddings, lengths), instruction


def one_of(audio: Audio, instruction: Padded, row: int) -> tuple[Audio, Padded]:
    count, said = int(audio.lengths[row]), int(instruction.lengths[row])
    part = slice(row, row + 1)
    return (
        Audio(audio.embeddings[part, :count], audio.lengths[part], audio.encoded[part, :count], audio.frames[part]),
        Padded(instruction.values[part, :said], instruction.lengths[part]),
    )


def written(
    model: SpeechLLM, audio: Audio, instruction: Padded, drafts: list[list[int]], **options
) -> list[Hypothesis]:
    how = DecodingOptions("speculative", **options)
    return generate(model, audio, instruction, Plain(), how, drafts=[[Plain.decode(draft)] for draft in drafts])  # type: ignore[arg-type]


def greedy(model: SpeechLLM, audio: Audio, instruction: Padded) -> list[Hypothesis]:
    return generate(model, audio, instruction, Plain())  # type: ignore[arg-type]


def spoiled(text: list[int], chance: random.Random) -> list[int]:
    """A draft with tokens that are wrong, missing and superfluous."""
    draft = []
    for token in text:
        kind = chance.random()
        draft += [token] if kind < 0.7 else [] if kind < 0.8 else [chance.randrange(3, 12)]
        draft += [chance.randrange(3, 12)] if kind > 0.93 else []
    return draft


@pytest.mark.parametrize("quality", ["none", "right", "spoiled", "another", "too long"])
def test_texts_are_those_of_greedy_search_in_batches_and_alone(model: SpeechLLM, quality: str) -> None:
    audio, instruction = batch(model, FRAMES)
    expected = greedy(model, audio, instruction)
    said = Plain.encode([found.text for found in expected])
    chance = random.Random(quality)
    drafts = {
        "none": [[] for _ in said],
        "right": said,
        "spoiled": [spoiled(text, chance) for text in said],
        "another": said[1:] + said[:1],
        "too long": [text + [chance.randrange(3, 12) for _ in range(200)] for text in said],
    }[quality]
    together = written(model, audio, instruction, drafts)
    assert together == expected
    for found, by_greedy in zip(together, expected, strict=True):
        assert found.num_tokens == by_greedy.num_tokens
        assert found.log_probability == pytest.approx(by_greedy.log_probability, rel=1e-3, abs=1e-3)
    for row, draft in enumerate(drafts):
        (alone,) = written(model, *one_of(audio, instruction, row), [draft])
        assert alone == together[row]
        assert (alone.passes, alone.drafted) == (together[row].passes, together[row].drafted)


def test_a_right_draft_takes_one_pass(model: SpeechLLM) -> None:
    audio, instruction = batch(model, FRAMES)
    drafts = Plain.encode([found.text for found in greedy(model, audio, instruction)])
    assert {found.passes for found in written(model, audio, instruction, drafts)} == {1}
    without = written(model, audio, instruction, [[] for _ in drafts])
    assert [found.passes for found in without] == [max(1, found.num_tokens - found.drafted) for found in without]


def test_every_draft_is_accepted_where_no_probability_is_asked_of_it(model: SpeechLLM) -> None:
    audio, instruction = batch(model, [40, 23])
    drafts = [[3, 4, 5, 6], [7, 8]]
    relaxed = written(model, audio, instruction, drafts, accept_probability=0.0)
    assert [found.text for found in relaxed] == ["3 4 5 6", "7 8"]
    assert written(model, audio, instruction, drafts, accept_probability=1.0) == greedy(model, audio, instruction)


def test_an_llm_whose_window_slides_is_decoded_without_drafts(small_encoder: ConformerConfig) -> None:
    model = build(small_llm("mistral"), small_encoder, lora_r=0).eval()
    audio, instruction = batch(model, FRAMES)
    expected = greedy(model, audio, instruction)
    with pytest.warns(UserWarning, match="too short for drafts"):
        found = written(model, audio, instruction, Plain.encode([hypothesis.text for hypothesis in expected]))
    assert found == expected
    assert all(hypothesis.drafted == 0 for hypothesis in found)


def test_a_row_ends_where_rows_of_a_batch_do() -> None:
    texts, caps = [], []
    for seed in range(200):
        chance = random.Random(seed)
        phrase = [chance.randrange(3, 6) for _ in range(chance.randrange(1, 10))]
        tokens = [chance.randrange(3, 6) for _ in range(chance.randrange(5))] + phrase * chance.randrange(1, 30)
        tokens.insert(chance.randrange(len(tokens) + 1), chance.choice([2, 3]))  # 2 is the end token
        texts.append(tokens)
        caps.append(chance.randrange(1, 100))
    written, lengths = pad_tokens(texts)
    ends, rows = TextEnds(torch.tensor(caps), 2), [TextEnd(cap, 2) for cap in caps]
    for length in range(1, int(lengths.max()) + 1):
        ended = ends(written[:, :length]).tolist()
        how = list(zip(ends.complete.tolist(), ends.looped.tolist(), strict=True))
        for seed, (row, tokens) in enumerate(zip(rows, texts, strict=True)):
            if row.ended or length > len(tokens):
                continue
            row(tokens[:length])
            assert row.ended == ended[seed], seed
            assert not row.ended or (row.complete, row.looped) == how[seed], seed
    assert {(row.complete, row.looped) for row in rows if row.ended} == {(True, False), (False, True), (False, False)}


@pytest.mark.parametrize("decoder", ["speculative", "beam"])
@torch.no_grad()
def test_the_draft_is_an_alternative_with_the_score_of_reading_it_at_once(model: SpeechLLM, decoder) -> None:
    audio, instruction = batch(model, FRAMES)
    drafts = [[3, 4, 5], [], [7] * 200, [9], [4, 3, 4, 3, 8]]
    plain = DecodingOptions(decoder, num_beams=2 if decoder == "beam" else 4)
    options = replace(plain, ctc_weight=0.3)
    texts = [Plain.decode(draft) for draft in drafts]
    together = generate(model, audio, instruction, Plain(), options, drafts=[[text] for text in texts])  # type: ignore[arg-type]
    without = generate(model, audio, instruction, Plain(), plain, drafts=[[text] for text in texts])  # type: ignore[arg-type]
    assert together == without
    more = [found.passes - alone.passes for found, alone in zip(together, without, strict=True)]
    of_drafts = 2 if decoder == "beam" else 0  # over prompts and texts, while the other's first pass does
    assert more == [of_drafts, of_drafts, 0, of_drafts, of_drafts]
    scores = read_at_once(model, audio, instruction, [draft[:8] for draft in drafts])
    for row, (found, draft) in enumerate(zip(together, drafts, strict=True)):
        assert found.alternatives[0] == found
        found_scores = {each.text: each.log_probability for each in found.alternatives}
        if len(draft) > 100:  # longer than its audio can be
            assert texts[row] not in found_scores
            continue
        assert found_scores[texts[row]] == pytest.approx(scores[row], rel=1e-3, abs=1e-3)


def read_at_once(model: SpeechLLM, audio: Audio, instruction: Padded, texts: list[list[int]]) -> list[float]:
    """Log-probability of each row's text and its end, in one pass without a cache."""
    answers = [[*text, model.tokens.eos] for text in texts]
    logits = model.logits(model.prompt(audio, instruction, pad_tokens(answers))).float().log_softmax(-1)
    return [
        sum(logits[row, place, label].item() for place, label in enumerate(answer))
        for row, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(("texts_at_once", "logits_at_once"), [(1, 10**9), (3, 10**9), (32, 1), (32, 100), (32, 10**9)])
@torch.no_grad()
def test_several_drafts_of_a_row_are_read_behind_its_own_audio(
    model: SpeechLLM, texts_at_once: int, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_text, "TEXTS_AT_ONCE", texts_at_once)
    monkeypatch.setattr(llm_text, "LOGITS_AT_ONCE", logits_at_once)
    audio, instruction = batch(model, FRAMES)
    drafts = [[[3, 4, 5], [6], [6, 3, 3, 4]], [[]], [[7] * 200, [5, 5]], [[9], []], [[4, 3, 4, 3, 8], [8], [9, 9]]]
    options = DecodingOptions("beam", num_beams=2, ctc_weight=0.3, ctc_candidates=2)
    texts = [[Plain.decode(draft) for draft in own] for own in drafts]
    together = generate(model, audio, instruction, Plain(), options, drafts=texts)  # type: ignore[arg-type]
    for place in range(3):
        chosen = [own[min(place, len(own) - 1)] for own in drafts]
        scores = read_at_once(model, audio, instruction, [draft[:8] for draft in chosen])
        for found, draft, score in zip(together, chosen, scores, strict=True):
            of_texts = {each.text: each.log_probability for each in found.alternatives}
            if len(draft) > 100:
                assert Plain.decode(draft) not in of_texts
            else:
                assert of_texts[Plain.decode(draft)] == pytest.approx(score, rel=1e-3, abs=1e-3)
