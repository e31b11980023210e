"""What is simulated: a server, and the requests that reach it; imports no SGLang."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from math import ceil, inf
from typing import Any

from sgl_dynts.config import PAPER_CONFIG, DynTSConfig

STOCK, DYNTS = "stock", "dynts"
SIDES = (STOCK, DYNTS)


@dataclass(frozen=True)
class ServerSpec:
    """One simulated server.

    ``shape`` and ``gpu`` name entries of the roofline. ``pool_tokens`` None means all that fits beside
    the weights. ``chunked_prefill`` is SGLang's default on a GPU of this size, which a CPU does not
    tell it. ``sliding_share`` is SGLang's ``--swa-full-tokens-ratio``: where a shape has sliding layers,
    slots of their pool for each slot of the other, which ``pool_tokens`` counts. ``num_states`` are the
    recurrent states in all, where a shape has them (``--max-mamba-cache-size``). ``flags`` are further
    arguments of the server.

    Each simulated request stands for ``stands_for`` alike: a forward takes as long as with all of them,
    while pools, ``max_running`` and ``chunked_prefill`` are given for the simulated ones.
    """

    shape: str = "qwen-7b"
    gpu: str = "h200"
    pool_tokens: int | None = None
    windows: DynTSConfig = PAPER_CONFIG
    max_running: int = 1200
    context_len: int = 36864
    chunked_prefill: int = 8192
    overlap: bool = True
    sliding_share: float = 0.8
    num_states: int = 0
    stands_for: int = 1
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workload:
    """The requests of one simulation; lengths in tokens, ``rate`` in requests per virtual second.

    With ``rate`` they arrive at random, as a Poisson process. With ``clients`` so many are outstanding at
    any time: each that finishes brings the next. Their first requests get output lengths drawn evenly
    from 1 to ``output_len``, or they would grow and finish in step, which a server that has run for a
    while does not show. With ``first_wave`` the first so many requests get evenly spaced lengths instead,
    in random order: a pool that holds so many is from the start as it stays. With neither ``rate`` nor
    ``clients``, all arrive at once, or the first ``spread_wave`` evenly over ``spread_seconds`` and the
    others with the last of these.

    With ``max_new_tokens`` a request asks for that many and ends by the end-of-sequence token at its
    output length; without, it asks for exactly its output length and ignores that token. SGLang admits
    the two by different estimates. ``answer_len`` tokens come after ``</think>``; 0 closes no thinking.
    """

    num_requests: int
    output_len: int
    question_len: int = 200
    shared_prefix_len: int = 0
    rate: float | None = None
    clients: int | None = None
    first_wave: int | None = None
    spread_wave: int = 0
    spread_seconds: float = 0.0
    answer_len: int = 0
    max_new_tokens: int | None = None
    stream: bool = False
    seed: int = 0


def steady(workload: Workload, fitting: int, lives: float) -> Workload:
    """Return a workload as it is on a server that is full from the start and stays so.

    Args:
        workload: with clients, more than fit.
        fitting: requests that the pool holds; the first so many end evenly spaced.
        lives: how long rates are then taken, in lifetimes of a request.
    """
    num_requests = fitting + ceil(lives * fitting) + (workload.clients or 0)
    return replace(workload, num_requests=num_requests, first_wave=fitting)


@dataclass(frozen=True)
class PlannedRequest:
    """One request: when it arrives (virtual seconds), what it asks, how long its output is.

    It arrives at infinity if it waits for another to finish.
    ``close_at`` is the index of the generated token that closes thinking, -1 for none.
    """

    rid: str
    arrival: float
    question: tuple[int, ...]
    output_len: int
    close_at: int


@dataclass(frozen=True)
class Job:
    """One simulation of one side; ``max_wall_seconds`` of real time bound it.

    ``max_iterations`` ends it early, with requests unfinished: enough to time the scheduler. So does
    ``ends_with_window``, when the stretch is over that rates are taken from. The first
    ``skip_iterations`` are not timed. With ``turns``, a folder, both sides run at once until then, and
    from there on by turns of ``turn_len`` iterations.
    """

    server: ServerSpec
    workload: Workload
    max_wall_seconds: float = 3600
    max_iterations: int | None = None
    ends_with_window: bool = False
    skip_iterations: int = 0
    turns: str | None = None
    turn_len: int = 25

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Job":
        """Read what :meth:`to_json` wrote."""
        server = dict(values["server"])
        server["windows"] = DynTSConfig(**server["windows"])
        server["flags"] = tuple(server["flags"])
        rest = {key: value for key, value in values.items() if key not in ("server", "workload")}
        return cls(ServerSpec(**server), Workload(**values["workload"]), **rest)


def plan_requests(workload: Workload, words: range) -> list[PlannedRequest]:
    """Draw the requests of a workload, by arrival; the same for both sides.

    Args:
        workload: what to draw.
        words: token ids that questions are made of.
    """
    draw = random.Random(workload.seed)
    prefix = tuple(draw.choices(words, k=workload.shared_prefix_len))
    own_len = workload.question_len - workload.shared_prefix_len
    arrivals = _arrivals(workload, draw)
    wave = _spaced_lens(workload, draw)
    planned = []
    for index in range(workload.num_requests):
        staggered = not workload.first_wave and index < (workload.clients or 0)
        output_len = draw.randint(1, workload.output_len) if staggered else workload.output_len
        output_len = wave.pop() if wave else output_len
        close_at = output_len - workload.answer_len - 1 if workload.answer_len else -1
        question = prefix + tuple(draw.choices(words, k=own_len))
        request = PlannedRequest(str(index), next(arrivals), question, output_len, close_at)
        planned.append(request)
    return planned


def _spaced_lens(workload: Workload, draw: random.Random) -> list[int]:
    """Lengths of the first wave: evenly spaced up to the whole output, in random order."""
    wave = workload.first_wave or 0
    lens = [max(1, workload.output_len * place // wave) for place in range(1, wave + 1)]
    draw.shuffle(lens)
    return lens


def _arrivals(workload: Workload, draw: random.Random) -> Iterator[float]:
    now = 0.0
    for index in count():
        yield now
        if workload.rate is not None:
            now += draw.expovariate(workload.rate)
        elif index + 1 == workload.clients:
            now = inf
        elif index + 1 < workload.spread_wave:
            now += workload.spread_seconds / workload.spread_wave
