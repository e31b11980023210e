"""Files of problems, and generated problems whose answers are found a second way."""

import gzip
import re
from collections import deque

import pytest

from sgl_dynts.tasks import dead_ends, dfs
from sgl_dynts.tasks.__main__ import GENERATORS, main
from sgl_dynts.tasks.json_lines import LineError, parse_object, read_lines
from sgl_dynts.tasks.problems import SPLITS, read_problems

SIZES = {"ledger": 10, "dfs": 12, "dead-ends": 4}


@pytest.mark.parametrize("task", GENERATORS)
def test_what_the_command_writes_is_read_back(task, tmp_path, capsys):
    assert main([task, "--size", str(SIZES[task]), "--num-problems", "20", "--split", "train"]) == 0
    path = tmp_path / "problems.jsonl"
    path.write_text(capsys.readouterr().out)
    seeds = SPLITS["train"][:20]
    assert read_problems(path) == [GENERATORS[task](seed, SIZES[task]) for seed in seeds]


@pytest.mark.parametrize("task", GENERATORS)
def test_problems_differ_by_seed_and_are_the_same_in_every_run(task):
    make, size = GENERATORS[task], SIZES[task]
    assert len({make(seed, size).question for seed in range(50)}) == 50
    assert make(7, size) == make(7, size)


@pytest.mark.parametrize("task", GENERATORS)
def test_what_is_critical_stands_in_the_trace(task):
    for seed in range(20):
        problem = GENERATORS[task](seed, SIZES[task])
        assert problem.critical is not None
        for text in problem.critical:
            assert f" {text} " in f" {problem.trace} "


@pytest.mark.parametrize("task", GENERATORS)
def test_a_size_that_cannot_be_is_refused(task, capsys):
    assert main([task, "--size", "1000"]) == 1
    assert "1000" in capsys.readouterr().err


def path_after(neighbours: dict[str, list[str]], start: str, steps: int) -> list[str]:
    """Depth-first search by recursion, counted in moves."""
    moves: list[list[str]] = []
    visited = set()

    def visit(path: list[str]) -> None:
        visited.add(path[-1])
        for near in neighbours[path[-1]]:
            if near not in visited:
                moves.append([*path, near])
                visit([*path, near])
                moves.append(path)

    visit([start])
    return moves[steps - 1]


def test_the_path_of_a_depth_first_search_is_found_by_recursion_too():
    went_back = 0
    for seed in range(100):
        problem = dfs.make_problem(seed, 12)
        start = re.search(r"Start at (\S+) \.", problem.question)
        listed = re.search(r"Neighbours : (.*) ; After (\d+) steps", problem.question)
        assert start is not None
        assert listed is not None
        lists = [entry.split(" : ") for entry in listed[1].split(" ; ")]
        neighbours = {node: around.split() for node, around in lists}
        assert problem.answer.split() == path_after(neighbours, start[1], int(listed[2]))
        went_back += "back at" in problem.trace
    assert went_back > 80


def test_the_way_to_the_goal_is_the_shortest_and_the_trace_errs_first():
    for seed in range(100):
        problem = dead_ends.make_problem(seed, 4)
        roads = re.findall(r"(p\d+) to (p\d+) [,;]", problem.question)
        ends = re.search(r"from (p\d+) to (p\d+) \.", problem.question)
        assert ends is not None
        before = {ends[1]: ""}
        queue = deque([ends[1]])
        while queue:
            place = queue.popleft()
            for one, other in roads:
                if one == place and other not in before:
                    before[other] = place
                    queue.append(other)
        way = [ends[2]]
        while before[way[0]]:
            way.insert(0, before[way[0]])
        assert problem.answer.split() == way
        assert len(before) == 1 + 4 * dead_ends.WAY_LEN
        assert problem.trace.index("dead end") < problem.trace.index("the goal")


def write(tmp_path, text):
    path = tmp_path / "some.jsonl"
    path.write_text(text)
    return path


GOOD = '{"question": "1+1?", "answer": "2"}\n'


def test_what_a_line_does_not_say_comes_from_the_command(tmp_path):
    one, two = read_problems(write(tmp_path, GOOD + "\n" + GOOD), grader="math", task="sums")
    assert (one.id, two.id, one.grader, one.task) == ("some-1", "some-3", "math", "sums")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "{", r"some.jsonl:2: not JSON"),
        (GOOD + "[1]", r"some.jsonl:2: list where an object"),
        ('{"question": "1+1?"}', r"some.jsonl:1: field 'answer' is missing"),
        ('{"question": "1+1?", "answer": 2}', r"some.jsonl:1: answer is int, str is expected"),
        ('{"question": "1+1?", "answer": "2", "id": "a"}\n' * 2, r"some.jsonl:2: id 'a' is an earlier"),
        ('{"question": "1+1?", "answer": "2", "solution": "a"}', r":1: field 'solution' is unknown"),
        ('{"question": "1+1?", "answer": "A", "choices": [1, 2]}', r":1: choices must hold texts"),
        ('{"question": "1+1?", "answer": " "}', r":1: question and answer must not be empty"),
        ("\n", r"some.jsonl: no problem in it"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, text, message):
    with pytest.raises(LineError, match=message):
        read_problems(write(tmp_path, text))


LINE = '{"question": "why?", "answer": "7"}\n'


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + LINE,
        LINE.replace("\n", "\r\n"),
        LINE.strip(),
        "\n" + LINE + "\n",
        LINE.replace("7", '7", "critical": null, "task": "t'),
    ],
    ids=["byte order mark", "carriage return", "no last end", "empty lines", "critical null"],
)
def test_a_file_that_says_the_same_in_another_way_is_read(tmp_path, content):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content.encode())
    (problem,) = read_problems(path)
    assert (problem.question, problem.answer) == ("why?", "7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINE.encode("utf-16"), ":1: the file is UTF-16; write it as UTF-8"),
        (LINE.replace("why", "où").encode("latin-1"), ":1: byte 0xf9 at column 16 is not UTF-8"),
        (gzip.compress(LINE.encode()), ":1: the file is gzip; unpack it"),
        (f"[{LINE.strip()}]".encode(), ":1: list where an object is expected; one JSON object a line"),
        (b'{\n "question": "q"\n}\n', ":1: not JSON .* one JSON object a line is expected"),
        (
            LINE.replace('"7"', "7" * 5000).encode(),
            ":1: an integer has too many digits; write it in quotes",
        ),
        (LINE.replace('"7"', "7").encode(), ":1: answer is int, str is expected; write it in quotes"),
        (
            LINE.replace('"7"', "[" * 100_000 + "]" * 100_000).encode(),
            ":1: brackets are nested too deeply",
        ),
        (LINE.replace('"7"', "NaN").encode(), ":1: NaN is not JSON"),
        (LINE.replace('"7"', "-Infinity").encode(), ":1: -Infinity is not JSON"),
        ((LINE + LINE.replace("7", r"\uD83D")).encode(), r":2: '\\ud83d' is half of a character"),
        (LINE.replace("answer", "question").encode(), ":1: field 'question' is there twice"),
        (b"", "no problem in it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_read_is_refused_by_file_and_line(tmp_path, content, message):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(content)
    with pytest.raises(LineError, match=message) as caught:
        read_problems(path)
    assert str(caught.value).startswith(str(path))
    str(caught.value).encode()


def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path):
    path = tmp_path / "lines"
    texts = [f"one{mark}line" for mark in "\u2028\u2029\x85\x0b\x0c\x1c\x1e"]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    assert [line for _place, line in read_lines(path)] == [f"{text}\n" for text in texts]


def test_a_pair_of_escapes_is_one_character():
    assert parse_object(r'{"a": "\ud83d\ude00"}', "here") == {"a": "\U0001f600"}
