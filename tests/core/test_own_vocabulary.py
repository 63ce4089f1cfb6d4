"""CTC classes of a pretrained encoder's own vocabulary of characters or subwords."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.own_vocabulary import CharacterTokenizer, SubwordTokenizer, restored

UPPER = {"|": 0, "<unk>": 1, "A": 2, "B": 3, "<pad>": 4, "É": 5, "'": 6, "<s>": 7}


@pytest.fixture
def upper() -> CharacterTokenizer:
    return CharacterTokenizer.of_vocabulary(UPPER, "<pad>", "|", "<unk>")


def test_the_blank_comes_first_and_the_others_keep_their_order(upper: CharacterTokenizer) -> None:
    assert upper.pieces == ["<blank>", "▁", "<unk>", "A", "B", "É", "'", "<s>"]
    assert upper.vocab_size == len(UPPER)
    assert upper.encode("ab  a'é") == [3, 4, 1, 3, 6, 5]
    assert upper.encode("axb") == [3, upper.unk, 4]
    assert upper.unknown_characters("axb y") == {"x", "y"}


def test_text_is_decoded_in_lower_case_without_what_stands_for_no_text(upper: CharacterTokenizer) -> None:
    assert upper.decode([1, 3, 3, 1, 1, 7, 4, 2, 1]) == "aa b"
    with pytest.raises(ValueError, match="blank"):
        upper.decode([0])


def test_a_vocabulary_of_both_cases_keeps_them() -> None:
    mixed = CharacterTokenizer.of_vocabulary({"<pad>": 0, "<unk>": 1, "a": 2, "A": 3, " ": 4}, "<pad>", " ", "<unk>")
    assert mixed.encode("aA a") == [2, 3, 4, 2]
    assert mixed.decode([2, 3, 4, 2]) == "aA a"


def test_it_is_restored_from_its_bytes_and_another_file_is_refused(upper: CharacterTokenizer) -> None:
    again = restored(upper.to_bytes())
    assert isinstance(again, CharacterTokenizer)
    assert again.pieces == upper.pieces
    assert again.to_bytes() == upper.to_bytes()
    with pytest.raises(UserError, match="is not a vocabulary of characters"):
        restored(b'{"pieces": 3}')


@pytest.fixture(params=[str.lower, str.upper], ids=["lower", "upper"])
def subwords(request: pytest.FixtureRequest) -> SubwordTokenizer:
    """A vocabulary of one case, whose blank lies in the middle."""
    pieces = ["<unk>", "▁", "a", "<pad>", "b", "é", "▁a", "ab"]
    vocabulary = {piece if piece.startswith("<") else request.param(piece): i for i, piece in enumerate(pieces)}
    merges = [("▁", request.param("a")), (request.param("a"), request.param("b"))]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.enable_truncation(2)
    return SubwordTokenizer.of_tokenizer(tokenizer.to_str(), "<pad>", "<unk>")


def test_subwords_are_classes_behind_the_blank_and_keep_their_order(subwords: SubwordTokenizer) -> None:
    assert [piece.lower() for piece in subwords.pieces] == ["<blank>", "<unk>", "▁", "a", "b", "é", "▁a", "ab"]
    assert subwords.vocab_size == 8
    assert subwords.unk == 1
    assert subwords.encode("Ab  éab aa") == [6, 4, 2, 5, 7, 6, 3]
    assert subwords.decode([6, 4, 2, 5, 1, 7, 2, 6, 3]) == "ab éab aa"
    assert subwords.unknown_characters("axb y") == {"x", "y"}
    assert subwords.encode(" ") == []
    with pytest.raises(ValueError, match="blank"):
        subwords.decode([0])


def test_subwords_are_restored_from_their_bytes_and_another_file_is_refused(subwords: SubwordTokenizer) -> None:
    again = restored(subwords.to_bytes())
    assert isinstance(again, SubwordTokenizer)
    assert again.pieces == subwords.pieces
    assert again.encode("ab é") == subwords.encode("ab é")
    with pytest.raises(UserError, match="is not a vocabulary of subwords"):
        restored(b'{"subwords": 3}')


def test_a_vocabulary_with_a_gap_is_refused() -> None:
    with pytest.raises(UserError, match=r"no entry for class 3 of its CTC head: set model\.encoder\.head to new"):
        CharacterTokenizer.of_vocabulary({"<pad>": 0, "<unk>": 1, "a": 2, "b": 4}, "<pad>", "|", "<unk>")


def test_subwords_with_a_gap_are_refused() -> None:
    gapped = models.BPE({"<unk>": 0, "<pad>": 1, "a": 2, "b": 4}, [], unk_token="<unk>")
    with pytest.raises(UserError, match=r"no entry for class 3 of its CTC head"):
        SubwordTokenizer.of_tokenizer(Tokenizer(gapped).to_str(), "<pad>", "<unk>")
