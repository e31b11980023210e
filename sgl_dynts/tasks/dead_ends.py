"""A search with dead ends: several ways lead off, one of them to the goal.

The reference trace follows wrong ways to their ends before the right one, as a model does that errs and
corrects itself; all ways look alike until they end, and the answer reads the right one alone. Every text
is words joined by single spaces.
"""

import random
from itertools import pairwise

from sgl_dynts.tasks.problems import Problem

PLACES = tuple(f"p{number}" for number in range(100))
WAY_LEN = 5
"""Places on each way, the start not counted."""
MIN_WAYS = 2
MAX_WAYS = (len(PLACES) - 1) // WAY_LEN
RULES = (
    "One-way roads : {roads} ; Find the way from {start} to {goal} . Some ways are dead ends. End with a "
    "line that says 'Answer:' and then the places on the way in order, both ends included."
)


def make_problem(seed: int, size: int) -> Problem:
    """Return the problem of a seed, the same one in every run.

    Args:
        seed: selects the problem among those of one size.
        size: ways that lead off the start, `MIN_WAYS` to `MAX_WAYS`; one leads to the goal.

    Raises:
        ValueError: another size.
    """
    if not MIN_WAYS <= size <= MAX_WAYS:
        raise ValueError(f"size is {size} ways; choose {MIN_WAYS} to {MAX_WAYS}")
    rng = random.Random(f"dead-ends-{size}-{seed}")
    start, *places = rng.sample(PLACES, 1 + size * WAY_LEN)
    ways = [[start, *places[i : i + WAY_LEN]] for i in range(0, len(places), WAY_LEN)]
    right = rng.choice(ways)
    roads = [f"{one} to {other}" for way in ways for one, other in pairwise(way)]
    rng.shuffle(roads)
    tried = [way for way in ways if way is not right]
    rng.shuffle(tried)
    tried = [*tried[: rng.randrange(1, size)], right]
    return Problem(
        id=f"dead-ends-{size}-{seed}",
        task=f"dead-ends-{size}",
        question=RULES.format(roads=" , ".join(roads), start=start, goal=right[-1]),
        answer=" ".join(right),
        grader="words",
        trace=" ".join(_tell(number, way, way is right) for number, way in enumerate(tried, start=1)),
        critical=tuple(f"to {place}" for place in right[1:]),
    )


def _tell(number: int, way: list[str], is_right: bool) -> str:
    moves = " ".join(f"to {place} ;" for place in way[1:])
    end = "the goal ;" if is_right else f"dead end , back to {way[0]} ;"
    return f"try {number} : from {way[0]} {moves} {end}"
