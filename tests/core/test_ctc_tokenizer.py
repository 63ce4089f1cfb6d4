import copy
import io
import itertools
import random

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from speechllm_pl.core.ctc_tokenizer import BLANK, CtcTokenizer, ctc_collapse
from speechllm_pl.core.errors import UserError

TEXTS = {
    "en": "don't say twenty one",
    "de": "fünfundzwanzig große straßen",
    "nl": "'s ochtends tweeëntwintig foto's",
    "fr": "l'œuf est peut-être là où ça brûle",
    "es": "el niño dijo veintidós",
    "it": "perché è un po' così",
    "pt": "disse-me que não são três",
    "pl": "zażółć gęślą jaźń trzydzieści",
}


@pytest.fixture(scope="module")
def model() -> bytes:
    writer = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(list(TEXTS.values()) * 5),
        model_writer=writer,
        vocab_size=80,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture(scope="module")
def tokenizer(model) -> CtcTokenizer:
    return CtcTokenizer.from_bytes(model)


@pytest.mark.parametrize("language", TEXTS)
def test_texts_survive_the_round_trip(tokenizer, language):
    ids = tokenizer.encode(TEXTS[language])
    assert all(0 < label < tokenizer.vocab_size for label in ids)
    assert tokenizer.decode(ids) == TEXTS[language]


def test_classes_are_pieces_shifted_by_the_blank(tokenizer, model):
    processor = SentencePieceProcessor(model_proto=model)
    assert tokenizer.pieces[BLANK] == tokenizer.pieces[0] == "<blank>"
    assert tokenizer.vocab_size == len(tokenizer.pieces) == processor.vocab_size() + 1
    ids = tokenizer.encode("twenty straßen")
    assert ids == [piece + 1 for piece in processor.encode("twenty straßen")]
    assert "".join(tokenizer.pieces[label] for label in ids) == "▁twenty▁straßen"


def test_nothing_encodes_to_nothing(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_decoding_a_path_with_blanks_is_refused(tokenizer):
    with pytest.raises(ValueError, match="ctc_collapse"):
        tokenizer.decode([0, 3])


def test_a_path_with_blanks_and_repeats_decodes_after_collapsing(tokenizer):
    text, rng = TEXTS["de"], random.Random(0)
    path = []
    for label in tokenizer.encode(text):
        path += [0] * rng.randint(1, 2) + [label] * rng.randint(1, 3)
    assert tokenizer.decode(ctc_collapse(path)) == text


@pytest.mark.parametrize("blank", [0, 2])
def test_collapse_agrees_with_the_definition(blank):
    for path in itertools.product(range(3), repeat=6):
        expected = [label for i, label in enumerate(path) if label != blank and (i == 0 or path[i - 1] != label)]
        assert ctc_collapse(path, blank) == expected


def test_unknown_characters_are_found_and_encode_to_unk(tokenizer):
    assert tokenizer.unknown_characters("straße ж 漢 ж") == {"ж", "漢"}
    assert tokenizer.unknown_characters(TEXTS["pl"]) == set()
    assert tokenizer.unk in tokenizer.encode("straße ж")
    assert tokenizer.pieces[tokenizer.unk] == "<unk>"


def test_bytes_and_copies_give_the_same_tokenizer(tokenizer, model):
    assert tokenizer.to_bytes() == model
    for other in (CtcTokenizer.from_bytes(model), copy.deepcopy(tokenizer)):
        assert other.pieces == tokenizer.pieces
        assert other.encode(TEXTS["fr"]) == tokenizer.encode(TEXTS["fr"])


@pytest.mark.parametrize("content", [b"", b"just some text\n", bytes(64), b"\x0a\x05"])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(
        UserError, match="^tokenizer is not a SentencePiece model" if content else "^tokenizer is empty"
    ):
        CtcTokenizer.from_bytes(content)


def test_a_truncated_model_is_refused(model):
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        CtcTokenizer.from_bytes(model[: len(model) // 2])
