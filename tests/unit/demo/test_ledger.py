"""The ledger task: every problem is solvable, unambiguous and reads far back."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_dynts.demo import ledger

SEEDS = st.integers(0, 3 * 10**9 - 1)
LENGTHS = st.integers(ledger.MIN_STEPS, ledger.MAX_STEPS)
WIDE_LENGTHS = st.integers(ledger.MIN_STEPS, ledger.MAX_WIDE_STEPS)
SIZES = st.tuples(LENGTHS, st.just(False)) | st.tuples(WIDE_LENGTHS, st.just(True))


def make(seed: int, size: tuple[int, bool], *, brief: bool = False) -> ledger.Problem:
    """Make a ledger of so many entries, wide or not."""
    num_steps, wide = size
    return ledger.make_problem(seed, num_steps, brief=brief, wide=wide)


def solve(question: str) -> dict[str, int]:
    """Work a question out from its words alone."""
    given_part, _, rest = question.partition(" #1 ")
    values = {word[0]: int(word[2]) for word in given_part.split()}
    steps = ("#1 " + rest).partition(" ? ")[0].split()
    for _, result, operand, operation in zip(*(steps[i::4] for i in range(4)), strict=True):
        n = int(operation[1:])
        old = values[operand]
        values[result] = (old + n if operation[0] == "+" else old * n) % 10
    return values


@given(SEEDS, SIZES)
def test_the_answer_follows_from_the_question(seed: int, size: tuple[int, bool]) -> None:
    problem = make(seed, size)
    values = solve(problem.question)
    queries = problem.question.partition(" ? ")[2].split()
    assert problem.answer == " ".join(f"{name} {name}={values[name]}" for name in queries)


@given(SEEDS, SIZES)
def test_every_record_in_the_trace_is_true(seed: int, size: tuple[int, bool]) -> None:
    problem = make(seed, size)
    values = solve(problem.question)
    records = [word for word in problem.trace.split() if "=" in word]
    assert len(records) == 2 * size[0]
    assert all(values[word[0]] == int(word[2]) for word in records)


@given(SEEDS, SIZES, st.booleans())
def test_all_words_are_in_the_vocabulary(seed: int, size: tuple[int, bool], brief: bool) -> None:
    problem = make(seed, size, brief=brief)
    vocabulary = ledger.Vocabulary()
    text = f"{problem.prompt} {problem.completion}"
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(SEEDS, SIZES)
def test_what_is_read_was_written_long_before(seed: int, size: tuple[int, bool]) -> None:
    problem = make(seed, size)
    words = problem.trace.split()
    headers = [i for i, word in enumerate(words) if word == "from"]
    written: dict[str, int] = {}
    for number, i in enumerate(headers, start=1):
        if words[i + 1] in written:
            assert number - written[words[i + 1]] >= ledger.min_age(size[0])
        written[words[i - 1]] = number
    for name in problem.question.partition(" ? ")[2].split():
        assert size[0] + 1 - written[name] > ledger.min_age(size[0])


@given(SEEDS)
def test_problems_of_one_length_have_equally_many_words(seed: int) -> None:
    problem = ledger.make_problem(seed)
    assert len(problem.prompt.split()) == 66
    assert len(problem.trace.split()) == 616
    assert len(problem.completion.split()) == 624


def test_a_seed_names_one_problem() -> None:
    assert ledger.make_problem(7) == ledger.make_problem(7)
    assert ledger.make_problem(7).question != ledger.make_problem(8).question


def test_splits_share_no_seed() -> None:
    splits = (ledger.TRAIN_SEEDS, ledger.VALIDATION_SEEDS, ledger.TEST_SEEDS)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(splits))


def test_the_vocabulary_has_no_word_twice() -> None:
    words = ledger.wide_vocabulary()
    assert len(words) == len(set(words)) == 580
    assert ledger.vocabulary() == words[:436]


@pytest.mark.parametrize("num_steps", [ledger.MIN_STEPS - 1, ledger.MAX_STEPS + 1])
def test_a_length_out_of_range_is_refused_by_name(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        ledger.make_problem(1, num_steps)


def test_a_task_takes_wide_ledgers_where_it_needs_them_and_no_longer_ones() -> None:
    most = ledger.MAX_WIDE_STEPS
    narrow, wide = (ledger.make_task_problem(5, n) for n in (ledger.MAX_STEPS, most))
    assert narrow.question == ledger.make_problem(5, ledger.MAX_STEPS).question
    assert wide.question == ledger.make_problem(5, most, wide=True).question
    with pytest.raises(ValueError, match=f"num_steps is {most + 1}; choose {ledger.MIN_STEPS} to {most}"):
        ledger.make_task_problem(5, most + 1)


def test_a_right_answer_is_recognised_with_and_without_its_trace() -> None:
    problem = ledger.make_problem(3)
    assert ledger.is_correct(problem, problem.completion)
    assert ledger.is_correct(problem, problem.answer)
    assert ledger.is_correct(problem, f" {problem.answer} {ledger.EOS} {ledger.PAD}")


def test_a_wrong_or_unfinished_answer_is_not_right() -> None:
    problem = ledger.make_problem(3)
    name, record = problem.answer.split()[:2]
    other = f"{name}={(int(record[2]) + 1) % 10}"
    assert not ledger.is_correct(problem, problem.answer.replace(record, other))
    assert not ledger.is_correct(problem, problem.trace)
    assert not ledger.is_correct(problem, f"{problem.answer} {record}")
    assert not ledger.is_correct(problem, "")
