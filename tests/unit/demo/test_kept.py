"""What the demo in English shows of an answer."""

import pytest

from sgl_dynts.demo.kept import WIDTH, Word, lines_of, marked, paragraphs_of
from sgl_dynts.demo.serving import Reply


@pytest.mark.parametrize(
    ("share", "mark"), [(0.0, "."), (0.04, "."), (0.06, "1"), (0.5, "5"), (0.99, "9"), (1.0, "#")]
)
def test_a_mark_tells_tenths_of_the_heads(share, mark):
    assert Word("word", share).mark == mark


def test_tokens_are_put_together_to_words_and_paragraphs():
    pieces = ["Light", "house", " keeper", ".", "\n\n", "He", " reads", ".\n", "It", " is", "\n", " late"]
    shares = [0.2, 0.4, 1.0, 0.0, 0.5, 1.0, 0.6, 0.2, 0.1, 0.3, 0.0, 1.0]
    found = [
        [(word.text, round(word.share, 3)) for word in words] for words in paragraphs_of(pieces, shares)
    ]
    assert found == [
        [("Lighthouse", 0.3), ("keeper.", 0.5)],
        [("He", 1.0), ("reads.", 0.4)],
        [("It", 0.1), ("is", 0.3)],
        [("late", 1.0)],
    ]


def test_a_mark_stands_below_the_first_letter_of_its_word():
    assert marked([Word("an", 1.0), Word("answer", 0.3), Word("x", 0.0)]) == [
        "an answer x",
        "#  3      .",
    ]


def test_lines_are_no_longer_than_the_screen_and_lose_no_word():
    words = [Word(f"word{number}", 0.5) for number in range(60)]
    lines = marked(words)
    assert len(lines) == 2 * len(lines[::2]) > 4
    assert all(len(line) <= WIDTH for line in lines)
    assert " ".join(lines[::2]).split() == [word.text for word in words]
    assert "".join(lines[1::2]).count("5") == 60


def test_the_last_line_of_an_answer_shows_once_it_grows_no_further():
    text = "a " * 40 + "\n\nend"
    growing, whole = (
        Reply(text, {"finish_reason": None}),
        Reply(text, {"finish_reason": {"type": "stop"}}),
    )
    assert lines_of(whole)[-1] == "end"
    assert lines_of(growing) == lines_of(whole)[:-1]
