"""Texts that combine those of a search differ from the best one in one place alone, where they read as another."""

import itertools
import random

from speechllm_pl.recognition.recombination import recombined


def test_words_of_another_text_take_the_place_of_the_best_ones_in_one_place() -> None:
    best, other = "the cat sat on a mat", "a cat sat in a hat today"
    assert recombined([best, other], 9) == [
        "a cat sat on a mat",
        "the cat sat in a mat",
        "the cat sat on a hat today",
    ]
    assert recombined([best, "cat sat on the mat"], 9) == ["cat sat on a mat", "the cat sat on the mat"]


def test_texts_that_are_known_and_more_than_were_asked_for_are_left_out() -> None:
    texts = ["one two three", "one too three", "won two tree"]
    assert recombined(texts, 9) == ["won two three", "one two tree"]  # "one too three" is there
    assert recombined(texts, 1) == ["won two three"]
    assert recombined(["one"], 9) == recombined([], 9) == []
    assert recombined(["", "one"], 9) == []


def test_each_is_the_best_text_with_one_run_of_words_replaced_by_one_of_the_other() -> None:
    chance, made = random.Random(0), 0
    for _ in range(50):
        best, other = ([chance.choice("abcde") for _ in range(chance.randrange(1, 7))] for _ in range(2))
        places = [list(itertools.combinations_with_replacement(range(len(text) + 1), 2)) for text in (best, other)]
        possible = {
            " ".join([*best[:first], *other[start:end], *best[last:]])
            for (first, last), (start, end) in itertools.product(*places)
        }
        new = recombined([" ".join(best), " ".join(other)], 99)
        assert len(set(new)) == len(new)
        assert {*new} <= possible - {" ".join(best), " ".join(other)}
        made += len(new)
    assert made > 50
