"""CTC classes of a pretrained encoder's own vocabulary of characters."""

import pytest

from speechllm_pl.core.character_tokenizer import CharacterTokenizer, restored
from speechllm_pl.core.errors import UserError

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
