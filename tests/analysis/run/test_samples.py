"""Which transcripts are shown: some that are right, and the worst."""

from speechllm_pl.analysis.run.samples import chosen_samples


def row(id_, language, words, errors, system="llm"):
    reference = " ".join(["x"] * words)
    return {"id": id_, "system": system, "language": language, "reference": reference, "errors": errors}


def test_samples_are_a_third_right_from_all_languages_and_then_the_worst():
    right = [row(f"r{n}", language, 4, 0) for n, language in enumerate(["de", "de", "en", "fr"])]
    wrong = [row(f"w{n}", "en", 10, n) for n in range(1, 8)]
    found = [rows[0]["id"] for rows in chosen_samples(wrong + right, 9)]
    assert found == ["r0", "r2", "r3", "w7", "w6", "w5", "w4", "w3", "w2"]


def test_samples_are_filled_up_with_whichever_kind_there_is():
    right = [row(f"r{n}", "en", 4, 0) for n in range(9)]
    wrong = [row(f"w{n}", "en", 4, 1) for n in range(9)]
    assert len(chosen_samples(right + wrong[:1], 6)) == 6
    assert len(chosen_samples(wrong + right[:1], 6)) == 6
    assert len(chosen_samples(wrong, 100)) == 9


def test_samples_are_judged_by_the_last_stage():
    rows = [row("a", "en", 2, 2, "ctc"), row("a", "en", 2, 0, "llm"), row("b", "en", 2, 0, "ctc"), row("b", "en", 2, 1)]
    assert [[r["system"] for r in rows] for rows in chosen_samples(rows, 1)] == [["ctc", "llm"]]
    assert chosen_samples(rows, 1)[0][0]["id"] == "b"
