"""The tiny LLaMA: its texts, its task, and the Hugging Face folder that comes out."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.tiny_llm.llm_folder import build
from data_prep.tiny_llm.noisy_copies import IGNORED, Noise, collate, noisy_copy, perturb
from data_prep.tiny_llm.pretraining import Recipe, _groups_of_similar_length
from data_prep.tiny_llm.subwords import BOS_ID, EOS_ID, FILLER_ID, SPECIAL_TOKENS
from data_prep.tiny_llm.text_pool import TextPool, read_texts, too_few
from speechllm_pl.core.errors import UserError

EIGHT_LANGUAGES = {
    "en": ["three hundred and forty five", "it's nine", "seventy two"],
    "de": ["fünfhundertdreiundzwanzig", "zwölf", "dreißig"],
    "nl": ["drieëntwintig", "vijf", "achtenzestig"],
    "fr": ["quatre-vingt-dix", "zéro", "l'été"],
    "es": ["veintidós", "mil", "dieciséis"],
    "it": ["ventitré", "cento", "sessantuno"],
    "pt": ["três", "cinquenta e três", "cento e dez"],
    "pl": ["pięć", "dziewięćdziesiąt sześć", "sto"],
}
SMALL = Recipe(
    steps=40,
    batch_tokens=300,
    learning_rate=1e-2,
    vocabulary_size=120,
    hidden_size=32,
    intermediate_size=48,
    layers=2,
    heads=2,
)
VOCABULARY = range(5, 50)


def write_manifest(path: Path, texts: dict[str, list[str]]) -> Path:
    cuts = []
    for language, of_language in texts.items():
        for number, text in enumerate(of_language):
            name = f"{language}-{number}"
            supervision = SupervisionSegment(name, name, 0.0, 1.0, text=text, language=language)
            cuts.append(MonoCut(name, 0.0, 1.0, 0, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("llm") / "llm"
    build(EIGHT_LANGUAGES, output, recipe=SMALL, evaluated=2)
    return output


def without_layout(frames: list[int]) -> list[int]:
    """What CTC makes of frames: repeats merged, then fillers removed."""
    merged = [f for n, f in enumerate(frames) if n == 0 or f != frames[n - 1]]
    return [f for f in merged if f != FILLER_ID]


def test_a_copy_without_wrong_tokens_collapses_to_its_text_as_ctc_would() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = rng.choices(range(5, 9), k=rng.randint(1, 12))  # few ids, so many real repeats
        assert without_layout(noisy_copy(text, VOCABULARY, Noise(wrong=0.0), rng)) == text


def test_a_copy_has_held_tokens_and_runs_of_fillers_up_to_the_limits() -> None:
    noise = Noise(max_fillers=3, long_run=0.2, held=0.5, wrong=0.0)
    prefix = noisy_copy(list(range(5, 45)), VOCABULARY, noise, random.Random(1))
    runs = dict.fromkeys(prefix, 0)
    length = 0
    for position, token in enumerate(prefix):
        length = length + 1 if position and prefix[position - 1] == token else 1
        runs[token] = max(runs[token], length)
    assert 3 < runs.pop(FILLER_ID) <= 12
    assert set(runs.values()) == {1, 2, 3}


def test_wrong_tokens_come_at_their_rate_and_no_noise_is_the_text_itself() -> None:
    text = list(range(5, 50)) * 40
    clean = Noise().weakened(0.0)
    assert noisy_copy(text, VOCABULARY, clean, random.Random(0)) == text
    # Frames are one per token here; a token of its own value stays, the others are replaced or dropped.
    frames = noisy_copy(text, range(1000, 1001), replace(clean, wrong=0.3), random.Random(0))
    kept = sum(5 <= frame < 50 for frame in frames) / len(text)
    assert kept == pytest.approx(0.7, abs=0.04)
    assert {1000, FILLER_ID} <= set(frames)


def test_labels_are_the_text_and_eos_and_leave_out_prefix_bos_and_padding() -> None:
    ids, labels, in_prefix = collate([([7, 4, 8], [7, 8]), ([], [9])])
    assert ids.tolist() == [[7, 4, 8, BOS_ID, 7, 8, EOS_ID], [BOS_ID, 9, EOS_ID, 0, 0, 0, 0]]
    assert labels.tolist() == [[IGNORED] * 4 + [7, 8, EOS_ID], [IGNORED, 9, EOS_ID] + [IGNORED] * 4]
    assert in_prefix.tolist() == [[True] * 3 + [False] * 4, [False] * 7]


def test_perturbing_changes_the_prefix_only_and_no_noise_changes_nothing() -> None:
    table = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    ids, _, in_prefix = collate([([7, 4, 8], [7, 8]), ([5], [9])])

    def perturbed(noise: Noise) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return perturb(table[ids], ids, in_prefix, table, noise, generator)

    changed = (perturbed(Noise()) != table[ids]).any(dim=-1)
    assert torch.equal(changed, in_prefix)
    assert torch.equal(perturbed(Noise(blur=0.0, gaussian=0.0, scale=1.0)), table[ids])


def test_drawn_texts_are_new_mix_no_languages_and_are_never_held_out() -> None:
    texts = {"en": ["one two three", "four five", "six"], "de": ["eins zwei", "drei vier fünf"]}
    pool = TextPool(texts, held_out={"six", "one two"})
    rng = random.Random(0)
    drawn = {pool.draw(rng, max_words=4) for _ in range(2000)}
    words = {language: set(" ".join(of).split()) for language, of in texts.items()}
    assert all(any(set(text.split()) <= of for of in words.values()) for text in drawn)
    assert max(len(text.split()) for text in drawn) == 4
    assert not drawn & {"six", "one two"}
    assert drawn - set(texts["en"]) - set(texts["de"])


def test_batches_stay_within_their_tokens_and_hold_sequences_of_similar_length() -> None:
    rng = random.Random(0)
    pairs = [([5] * rng.randint(0, 60), [6] * rng.randint(1, 20)) for _ in range(300)]
    groups = _groups_of_similar_length(pairs, 400)
    assert sorted(pair for group in groups for pair in group) == sorted(pairs)
    padded = [collate(group).ids.numel() for group in groups]
    assert max(padded) <= 400
    assert sum(len(p) + len(t) + 2 for p, t in pairs) > 0.9 * sum(padded)


def test_the_folder_is_an_ordinary_hugging_face_folder(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.filler_token_id == tokenizer.convert_tokens_to_ids("<filler>") == FILLER_ID
    assert tokenizer.filler_token == "<filler>"
    for name in ("bos", "eos", "pad"):
        ids = {getattr(part, f"{name}_token_id") for part in (model.config, model.generation_config, tokenizer)}
        assert len(ids) == 1
        assert None not in ids


def test_the_tokenizer_gives_texts_of_eight_languages_back_and_adds_nothing(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in [text for of_language in EIGHT_LANGUAGES.values() for text in of_language]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == tokenizer(text).input_ids
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert tokenizer.decode(ids) == text
        around = [BOS_ID, FILLER_ID, *ids, FILLER_ID, EOS_ID]
        assert tokenizer.decode(around, skip_special_tokens=True) == text


def test_loss_falls(folder: Path) -> None:
    loss = json.loads((folder / "pretraining.json").read_text())["loss"]
    assert loss["last"] < 0.8 * loss["first"]


def test_two_runs_give_identical_weights_and_tokenizers(folder: Path, tmp_path: Path) -> None:
    build(EIGHT_LANGUAGES, tmp_path / "again", recipe=SMALL, evaluated=2)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_rerun_does_nothing_and_other_settings_build_anew(tmp_path: Path, capsys) -> None:
    output = tmp_path / "llm"
    short = replace(SMALL, steps=2)
    build(EIGHT_LANGUAGES, output, recipe=short, evaluated=1)
    before = (output / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    build(EIGHT_LANGUAGES, output, recipe=short, evaluated=1)
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out
    build(EIGHT_LANGUAGES, output, recipe=replace(short, seed=1), evaluated=1)
    assert (output / "model.safetensors").stat().st_mtime_ns != before
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by tiny_llm"):
        build(EIGHT_LANGUAGES, tmp_path, recipe=SMALL)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_texts_are_read_by_language_once_each(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "a.jsonl.gz", {"en": ["one", "two", "one"], "de": ["eins"]})
    assert read_texts([manifest, manifest]) == {"en": ["one", "two"], "de": ["eins"]}


def test_a_missing_and_a_broken_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        read_texts([tmp_path / "nowhere.jsonl"])
    (tmp_path / "broken.jsonl").write_text('{"id": "x", \n')
    with pytest.raises(UserError, match=r"broken\.jsonl"):
        read_texts([tmp_path / "broken.jsonl"])


def test_too_little_text_is_told_before_minutes_are_spent_on_it() -> None:
    enough = {"en": [f"text {number}" for number in range(150)], "de": [f"Text {number}" for number in range(50)]}
    assert too_few(enough) == ""
    enough["de"].pop()
    assert too_few(enough).startswith("199 different transcripts are too few to make an LLM of")
    assert "LLM=" in too_few(enough)


def test_the_program_works_on_ten_digit_words(tmp_path: Path) -> None:
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    manifest = write_manifest(tmp_path / "train.jsonl.gz", {"en": digits})
    program = [sys.executable, "-m", "data_prep.tiny_llm", "--manifest", manifest, "--steps", "2"]
    done = subprocess.run([*program, "--output", tmp_path / "llm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "held-out" in done.stdout
    assert 5 < len(AutoTokenizer.from_pretrained(tmp_path / "llm")) < 100
