import gzip
import sys

import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from num2words import num2words

from data_prep import tokenizer
from data_prep.machinery import command_line
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.languages import LANGUAGES
from speechllm_pl.core.text import normalize
from speechllm_pl.storage.tokenizers import read_tokenizer


def write_manifest(path, texts):
    """A cut set with these transcripts; the recordings need not exist."""
    cuts = []
    for i, text in enumerate(texts):
        supervision = SupervisionSegment(f"s{i}", f"r{i}", start=0.0, duration=1.0, text=text, language="en")
        recording = Recording(f"r{i}", sources=[], sampling_rate=16000, num_samples=16000, duration=1.0)
        cuts.append(MonoCut(f"c{i}", 0.0, 1.0, 0, supervisions=[supervision], recording=recording))
    CutSet.from_cuts(cuts).to_file(path)
    return path


@pytest.fixture(scope="module")
def texts():
    return [
        normalize(num2words(number, lang=language), language)
        for language in LANGUAGES
        for number in range(3, 100_000, 1733)
    ]


@pytest.fixture
def program(monkeypatch):
    """Runs the program as from the command line and gives its exit status."""

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["tokenizer", *map(str, arguments)])
        try:
            command_line.run(tokenizer.main)
        except SystemExit as status:
            return int(status.code or 0)
        return 0

    return run


def test_the_size_asked_for_is_reached_and_all_eight_languages_survive(program, tmp_path, texts, capsys):
    manifest, model = write_manifest(tmp_path / "train.jsonl.gz", texts), tmp_path / "new" / "tokenizer.model"
    assert program("--manifest", manifest, "--vocab-size", 256, "--output", model) == 0
    trained = read_tokenizer(model)
    assert trained.vocab_size == 257
    assert all(trained.decode(trained.encode(text)) == text for text in texts)
    assert "warning" not in capsys.readouterr().err


def test_there_are_no_pieces_that_speech_cannot_contain(texts):
    pieces = CtcTokenizer.from_bytes(tokenizer.train(texts, 200)).pieces
    assert pieces[:2] == ["<blank>", "<unk>"]
    assert not {"<s>", "</s>", "<pad>"} & set(pieces)


def test_text_is_taken_as_it_is():
    # NFKC, SentencePiece's default, would change both words.
    trained = CtcTokenizer.from_bytes(tokenizer.train(["ﬁn ½", "ſo ½"] * 5, 12))
    assert trained.decode(trained.encode("ﬁn ½ ſo")) == "ﬁn ½ ſo"


def test_even_the_rarest_character_has_a_piece():
    long = "b" * 5000 + " ł"
    trained = CtcTokenizer.from_bytes(tokenizer.train(["a b c d e"] * 5000 + ["ж", long], 20))
    assert trained.unknown_characters("abcde жł") == set()


def test_training_twice_gives_the_same_bytes(program, tmp_path, texts):
    manifest = write_manifest(tmp_path / "train.jsonl.gz", texts)
    for name in ("one.model", "two.model", "two.model"):
        assert program("--manifest", manifest, "--vocab-size", 128, "--output", tmp_path / name) == 0
    assert (tmp_path / "one.model").read_bytes() == (tmp_path / "two.model").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl.gz", "one.model", "two.model"}


def test_several_manifests_are_read_together(program, tmp_path):
    first = write_manifest(tmp_path / "a.jsonl.gz", ["one two"] * 20)
    second = write_manifest(tmp_path / "b.jsonl.gz", ["żółć"] * 20)
    model = tmp_path / "tokenizer.model"
    assert program("--manifest", first, second, "--vocab-size", 14, "--output", model) == 0
    assert read_tokenizer(model).unknown_characters("one two żółć") == set()


def test_a_size_that_cannot_be_reached_is_warned_about_with_the_one_reached(program, tmp_path, capsys):
    manifest, model = (
        write_manifest(tmp_path / "train.jsonl.gz", ["one two three"] * 30),
        tmp_path / "t.model",
    )
    assert program("--manifest", manifest, "--vocab-size", 256, "--output", model) == 0
    reached = read_tokenizer(model).vocab_size - 1
    warning = capsys.readouterr().err
    assert reached < 256
    assert f"only {reached} pieces, not 256" in warning


def test_a_size_below_the_alphabet_is_refused_with_the_least_that_works(program, tmp_path, capsys):
    manifest, model = write_manifest(tmp_path / "train.jsonl.gz", ["abc def ghi"] * 30), tmp_path / "t.model"
    assert program("--manifest", manifest, "--vocab-size", 10, "--output", model) == 2
    assert "--vocab-size 11 or more" in capsys.readouterr().err
    assert not model.exists()
    assert program("--manifest", manifest, "--vocab-size", 11, "--output", model) == 0
    assert read_tokenizer(model).unknown_characters("abcdefghi") == set()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (gzip.compress(b'{"id": "cut", broken\n', mtime=0), "not a readable"),
        (b"not compressed", "not a readable"),
    ],
)
def test_a_bad_manifest_is_one_line_and_the_old_model_survives(program, tmp_path, capsys, content, expected):
    manifest, model = tmp_path / "bad.jsonl.gz", tmp_path / "tokenizer.model"
    model.write_bytes(b"the previous one")
    if content is not None:
        manifest.write_bytes(content)
    assert program("--manifest", manifest, "--output", model) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert str(manifest) in message
    assert expected in message
    assert model.read_bytes() == b"the previous one"


def test_a_manifest_without_transcripts_is_refused(program, tmp_path, capsys):
    manifest = write_manifest(tmp_path / "train.jsonl.gz", ["", "  "])
    assert program("--manifest", manifest, "--output", tmp_path / "t.model") == 2
    assert "no transcripts" in capsys.readouterr().err
