"""Texts come again by their seed, and what is chosen on shares nothing with what is reported."""

import pytest

from benchmark.texts import CALIBRATION, FOUND, KINDS, LENGTH, MADE, docstrings, main, texts_of


@pytest.mark.parametrize("kind", [*FOUND, *MADE])
def test_a_seed_gives_the_same_texts_and_another_gives_others(kind):
    first = list(texts_of(kind, "report", 1, 2))
    assert first == list(texts_of(kind, "report", 1, 2))
    assert first != list(texts_of(kind, "report", 2, 2))
    assert all(len(text) >= LENGTH for text in first)


@pytest.mark.parametrize("kind", [*FOUND, *MADE])
def test_the_splits_share_no_text(kind):
    reported, chosen = (set(texts_of(kind, split, 1, 20)) for split in ("report", "choice"))
    assert reported
    assert chosen
    assert not reported & chosen


def test_every_answer_of_a_recall_text_is_among_its_facts():
    (text,) = texts_of("recall", "report", 1, 1)
    facts, questions = text.split("Now the questions about the notes.")
    answers = [line.removeprefix("Answer: ") for line in questions.splitlines() if "Answer: " in line]
    assert len(answers) > 20
    assert all(answer.rstrip(".").split()[-1] in facts for answer in answers)


def test_the_files_are_called_by_their_kind(tmp_path):
    main([str(tmp_path), "--per-kind", "1"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {CALIBRATION, *(f"{kind}-00.txt" for kind in (*KINDS, "table"))}
    assert (tmp_path / CALIBRATION).read_text() == docstrings()
