"""Rows of the report: what they say of an utterance, and players of what can be read."""

import base64
import io
import math

import pytest
import soundfile
from prepared_corpus import clean_corpus, write_corpus

from speechllm_pl.analysis.data.listening import HeardRecording
from speechllm_pl.analysis.data.listings import list_one_of_each, list_suspects, players
from speechllm_pl.analysis.data.prepared_data import PreparedData, open_splits, read_through
from speechllm_pl.analysis.data.suspects import Found, Suspect
from speechllm_pl.analysis.data.transcript_scores import TranscriptScore

CORPUS = clean_corpus()


@pytest.fixture
def data(tmp_path) -> PreparedData:
    return read_through(open_splits(write_corpus(tmp_path, CORPUS)))[0]


def test_a_row_describes_its_utterance_and_what_was_heard(data, tmp_path):
    number = 5
    spoken = next(each for each in CORPUS if each.id == data.cut(number).id)
    heard = {number: HeardRecording(None, "", TranscriptScore(-3.0, 50, "what was heard"))}
    found = Found(7, [Suspect(number, 2.5, "too fast"), Suspect(6, math.inf, "not there")])
    listed = list_suspects(data, heard, found)
    row, other = listed["worst"]
    assert listed["count"] == 7
    assert {name: row[name] for name in ("id", "split", "language", "speaker", "text")} == {
        name: getattr(spoken, name) for name in ("id", "split", "language", "speaker", "text")
    }
    assert row["seconds"] == pytest.approx(len(spoken.samples) / 16_000)
    assert row["path"] == str(tmp_path / "audio" / f"{spoken.id}.wav")
    assert (row["reason"], row["badness"], row["heard"]) == ("too fast", 2.5, "what was heard")
    assert (other["badness"], other["heard"]) == (None, None)  # JSON knows no infinity


def test_one_of_each_split_and_language_is_drawn_by_the_seed(data):
    drawn = [(row["split"], row["language"]) for row in list_one_of_each(data, {}, seed=3)]
    assert sorted(drawn) == sorted((split, language) for split in data.splits for language in data.languages)
    ids = {seed: [row["id"] for row in list_one_of_each(data, {}, seed=seed)] for seed in (3, 3, 4)}
    assert ids[3] == [row["id"] for row in list_one_of_each(data, {}, seed=3)] != ids[4]


def test_players_hold_the_beginning_of_what_can_be_read(data, tmp_path):
    rows = list_one_of_each(data, {}, seed=0)
    (tmp_path / "audio" / f"{rows[0]['id']}.wav").unlink()
    found = players(data, [*rows, rows[1]], seconds=0.5)
    assert set(found) == {row["utterance"] for row in rows[1:]}
    content = base64.b64decode(found[rows[1]["utterance"]].partition(",")[2])
    assert 0.5 <= soundfile.info(io.BytesIO(content)).duration < 0.7
