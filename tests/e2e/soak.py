"""A stretch of unordered life for one server: random arrivals, budgets, aborts and hang-ups.

Nothing here depends on when something happens: whatever is left to the end is checked, and the server
checks its own memory all along.
"""

import random
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from tests.e2e.conftest import assert_equal, prompt
from tests.e2e.hf_reference import Reference, Windows
from tests.e2e.server import Asked, Server

CHOICES: tuple[tuple[dict | None, Windows | None], ...] = (
    ({}, Windows(96, 16, 0.4)),
    ({"budget": 64, "return_tokens": True}, Windows(64, 16, 0.4)),
    ({"budget": 128, "local_window": 24, "keep_ratio": 0.5}, Windows(128, 24, 0.5)),
    ({"enabled": False}, None),
)
FINISH, ABORT, HANG_UP = "finish", "abort", "hang up"


@dataclass(frozen=True)
class Life:
    """One request from its arrival to its end."""

    number: int
    case: dict
    windows: Windows | None
    fate: str
    patience: float
    """Seconds before it arrives, and again before it is aborted."""


def draw_lives(num_requests: int, longest: int, seed: int) -> list[Life]:
    """Draw requests whose question and output are at most ``longest`` tokens each."""
    draw = random.Random(seed)
    lives = []
    for number in range(num_requests):
        options, windows = draw.choice(CHOICES)
        question = prompt(draw.randint(3, longest // 2), seed=seed * 10_000 + number)
        case = {"prompt": question, "length": draw.randint(longest // 2, longest), "dynts": options}
        fate = draw.choice([FINISH, FINISH, FINISH, ABORT, HANG_UP])
        lives.append(Life(number, case, windows, fate, draw.expovariate(2)))
    return lives


def soak(server: Server, lives: list[Life], at_once: int, reference: Reference | None) -> None:
    """Live them, so many at once, and check whatever came to its end.

    Args:
        server: with DynTS, whose header recommends budget 96, local window 16, keep ratio 0.4.
        lives: of :func:`draw_lives`.
        at_once: requests in flight.
        reference: what the tokens must be; None where the arithmetic is too coarse to compare.
    """
    with ThreadPoolExecutor(at_once) as pool:
        replies = list(pool.map(lambda life: live(server, life), lives))
    for life, reply in zip(lives, replies, strict=True):
        if reply is not None:
            check(life, reply, reference)
    server.assert_nothing_leaked()


def live(server: Server, life: Life) -> dict | None:
    """The reply of a request that ran to its end."""
    time.sleep(life.patience)
    if life.fate == HANG_UP:
        return hang_up(server, life)
    if life.fate == FINISH:
        return server.generate(**life.case)
    name = f"life-{life.number}-"  # SGLang aborts every id that begins like this
    killer = threading.Timer(life.patience, server.request, ("/abort_request", {"rid": name}))
    killer.start()
    try:
        reply = server.generate(**life.case, rid=name)
    except urllib.error.HTTPError:  # aborted while it waited
        return None
    finally:
        killer.join()
    return reply if reply["meta_info"]["finish_reason"]["type"] == "length" else None


def hang_up(door: Asked, life: Life) -> None:
    """Close the connection when half of the tokens have come."""
    with closing(door.stream(**life.case)) as stream:
        for grown in stream:
            if len(grown.get("output_ids", ())) >= life.case["length"] // 2:
                return


def check(
    life: Life,
    reply: dict,
    reference: Reference | None,
    prompts_have_scores: bool = True,
) -> None:
    """Its tokens are as many as were owed, and its numbers belong to them.

    Args:
        life: of the request.
        reply: what came of it.
        reference: what the tokens must be, None for any.
        prompts_have_scores: whether the server has computed the prompt itself.
    """
    numbers = reply["meta_info"]["dynts"]
    got, owed = len(reply["output_ids"]), life.case["length"]
    assert got == owed, f"{got} tokens instead of {owed}: {reply['meta_info']}"
    assert numbers["enabled"] == (life.windows is not None)
    assert numbers["question_len"] == len(life.case["prompt"])
    seen = len(life.case["prompt"]) + life.case["length"]
    # Of a request that was computed again, dropped_tokens counts what its earlier life dropped too.
    dropped = sum(numbers["dropped_then"])
    held = numbers["window_len"] + dropped
    assert held in (seen - 1, seen), f"{held} held or dropped, {seen} seen: {numbers}"
    assert numbers["dropped_tokens"] >= dropped
    if "tokens" in numbers:
        unscored = 0 if prompts_have_scores else len(life.case["prompt"])
        check_tokens(numbers, seen, unscored)
    if reference is not None:
        assert_equal(reply, reference, life.case, life.windows, late=1)


def check_tokens(numbers: dict, seen: int, unscored: int = 0) -> None:
    """Every token but the first few and the newest has a score, and no token was dropped twice."""
    scores = numbers["tokens"]["scores"]
    assert len(scores) == seen - 1, f"{len(scores)} scores, {seen} seen"
    assert None not in scores[unscored:]
    drops = numbers["tokens"]["dropped"]
    assert [drop["seq_len"] for drop in drops] == numbers["compacted_at"]
    assert [len(drop["positions"]) for drop in drops] == numbers["dropped_then"]
    positions = [position for drop in drops for position in drop["positions"]]
    assert len(set(positions)) == len(positions)
