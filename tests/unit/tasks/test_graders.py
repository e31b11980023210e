"""Answers as models write them, and what each grader makes of them."""

import pytest

from sgl_dynts.tasks.graders import GRADERS, grader_of, runs
from sgl_dynts.tasks.problems import Problem


def judge(grader, answer, text, **fields):
    problem = Problem("p", "t", fields.pop("question", "?"), answer, grader, **fields)
    return grader_of(problem).judge(problem, text)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("n1 n2 n3", True),
        ("The path has three nodes.\nAnswer: n1 -> n2 -> n3", True),
        ("**Answer:** [n1, n2, n3].", True),
        ("n1 n3 n2", False),
        ("n1 n2", False),
        ("", False),
    ],
)
def test_words_are_compared_in_order_whatever_stands_between(text, is_right):
    assert judge("words", "n1 n2 n3", text).is_right is is_right


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("(A)", "So the answer is (A).", True),
        ("valid", "It follows.\nAnswer: Valid", True),
        ("True", "answer: true", True),
        ("a b c", "Sorted, that is\na b  c", True),
        ("(A)", "The answer is (B).", False),
        ("no", "Answer: no, but", False),
    ],
)
def test_exact_compares_the_answer_line(answer, text, is_right):
    assert judge("exact", answer, text).is_right is is_right


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"... \boxed{C}", "C"),
        (r"A first, then \boxed{\text{(B)}}", "B"),
        ("The answer is (D).", "D"),
        ("I do not know", ""),
    ],
)
def test_a_choice_is_the_last_letter_boxed_or_told(text, said):
    for letter in "ABCD":
        verdict = judge("choice", letter, text)
        assert verdict.said == said
        assert verdict.is_right == (letter == said)


def test_choices_are_asked_with_letters():
    problem = Problem("p", "t", "Which?", "B", "choice", choices=("one", "two"))
    assert "Which?\n\n(A) one\n(B) two\n\n" in grader_of(problem).ask(problem)


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("204", r"Thus $\boxed{204}$.", True),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        ("$\\frac{1}{2}$", r"\boxed{\frac12}", True),
        (r"(-\infty, 3]", r"\boxed{(-\infty,3]}", True),
        (r"\{1, 2\}", r"\boxed{\{2,1\}}", True),
        ("204", r"\boxed{205}", False),
        ("204", "I could not find it.", False),
    ],
)
def test_mathematics_is_equal_by_value(answer, text, is_right):
    assert judge("math", answer, text).is_right is is_right


ADD = {
    "question": 'def add(a, b):\n    """Add."""',
    "tests": "def check(f):\n    assert f(1, 2) == 3\n    assert f(0, 0) == 0",
    "entry_point": "add",
}


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("Here:\n```python\ndef add(a, b):\n    return a + b\n```", True),
        ("```py\nadd = 1\n```\nno:\n```\ndef add(a, b): return b + a\n```", True),
        ("```python\ndef add(a, b):\n    return a - b\n```", False),
        ("```python\nimport sys\nsys.exit(0)\n```", False),
        ("I cannot.", False),
    ],
)
def test_a_program_must_pass_its_tests(text, is_right):
    assert judge("python", "tests", text, **ADD).is_right is is_right


def test_a_program_that_takes_too_much_memory_ends():
    assert not runs("x = bytearray(1 << 34)")


def test_a_grader_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="problem p: grader='vibes' is unknown"):
        grader_of(Problem("p", "t", "?", "!", "vibes"))


def test_every_question_is_asked_with_its_own_words():
    for name in GRADERS:
        assert "What?" in GRADERS[name].ask(Problem("p", "t", "What?", "!", name))
