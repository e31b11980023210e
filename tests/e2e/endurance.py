"""Hard use of one server by commands that end by themselves and count every loss.

    python -m tests.e2e.endurance --minutes 60                     # requests and operators at their worst
    python -m tests.e2e.endurance --minutes 10 --model gpt_oss     # of another kind of model
    python -m tests.e2e.endurance --minutes 10 --feature eagle3    # with what production switches on
    python -m tests.e2e.endurance --requests 10000                 # a clock for leaks: memory and slots

Nothing is compared with a time. What a client was owed and did not get is lost, and one loss is enough
for exit status 1, as is anything that a pool still holds at the end.
"""

import argparse
import http.client
import json
import random
import shlex
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmark.harness.provenance import RESULTS, provenance, publish
from sgl_dynts.harness.server import unwind_on_sigterm
from tests.e2e import books
from tests.e2e.conftest import prompt
from tests.e2e.models import CONFIGS
from tests.e2e.places import FEATURES, Place, opened, spec_of
from tests.e2e.server import Server, abort
from tests.e2e.soak import ABORT, HANG_UP, Life, check, draw_lives, hang_up

SOAKS = RESULTS / "soaks.json"
BAD_BODIES: tuple[dict, ...] = (
    {"input_ids": [1, 9], "sampling_params": {"custom_params": {"dynts": {"budget": -5}}}},
    {"input_ids": [1, 9], "sampling_params": {"custom_params": {"dynts": {"bugdet": 64}}}},
    {"input_ids": [1, 9], "sampling_params": {"custom_params": {"dynts": "on"}}},
    {"input_ids": [1, 9], "sampling_params": {"custom_params": {"dynts": {"policy": "oracle"}}}},
    {"input_ids": [1, 9], "sampling_params": {"temperature": -1}},
    {"input_ids": [1, 9] * 3000, "sampling_params": {"max_new_tokens": 4}},
    {"input_ids": [1, 9], "sampling_params": {"max_new_tokens": -3}},
    {"sampling_params": {"max_new_tokens": 4}},
)
BROKEN = (OSError, http.client.HTTPException, AssertionError, KeyError, ValueError)
"""How a request may fail to keep its promise; anything else is a mistake of this file."""


@dataclass
class Tally:
    """What became of everything that was sent; counted by many threads."""

    outcomes: Counter = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    num_compactions: int = 0
    num_tokens: int = 0
    num_aborting_pauses: int = 0
    """Counted at its start and at its end: while one goes on, the number is odd."""
    books: dict[str, float] = field(default_factory=dict)
    """What pools of idle servers held."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, reply: dict | None = None) -> None:
        with self._lock:
            self.outcomes[outcome] += 1
            if reply is not None:
                self.num_compactions += reply["meta_info"]["dynts"]["compactions"]
                self.num_tokens += len(reply["output_ids"])

    def lose(self, what: str, error: BaseException) -> None:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        with self._lock:
            self.outcomes["lost"] += 1
            self.losses.append(f"{what}: {error!r} at {line}")


class Clients:
    """Threads that send one request after another until they are told to end."""

    def __init__(self, place: Place, tally: Tally, longest: int, seed: int) -> None:
        self.place = place
        self.tally = tally
        self.longest = longest
        self.seed = seed

    def live_until(self, deadline: float, number: int) -> None:
        """Be one client: lives from its own seed, every eighth request a bad one."""
        draw = random.Random(self.seed + number)
        for life in self._lives(number):
            if time.monotonic() >= deadline or self.place.has_ended():
                return
            try:
                outcome, reply = self._bad(draw) if draw.random() < 0.125 else self._live(life)
            except BROKEN as error:
                self.tally.lose(life.fate, error)
            else:
                self.tally.add(outcome, reply)

    def _lives(self, number: int) -> Iterator[Life]:
        wave = 0
        while True:
            seed = self.seed + 10_000 * wave + number
            for life in draw_lives(50, self.longest, seed):
                yield Life(seed * 100 + life.number, life.case, life.windows, life.fate, life.patience)
            wave += 1

    def _bad(self, draw: random.Random) -> tuple[str, None]:
        status, text = self.place.door.error("/generate", draw.choice(BAD_BODIES))
        assert 400 <= status < 500, f"{status} {text}"
        return "refused", None

    def _live(self, life: Life) -> tuple[str, dict | None]:
        if life.fate == HANG_UP:
            hang_up(self.place.door, life)
            return "hung up", None
        pauses = self.tally.num_aborting_pauses
        reply = self._reply(life)
        if reply is None or reply["meta_info"]["finish_reason"]["type"] == "abort":
            meant = life.fate == ABORT or pauses % 2 or self.tally.num_aborting_pauses > pauses
            assert meant, f"ended though nobody aborted it: {reply}"
            return "aborted", None
        check(life, reply, None, self.place.prompts_have_scores)
        return "finished", reply

    def _reply(self, life: Life) -> dict | None:
        """What a request got; None where it was aborted before it got anything."""
        name = f"endurance-{life.number}-"  # SGLang aborts every id that begins like this
        killer = threading.Timer(life.patience, abort, (self.place.servers, name))
        if life.fate == ABORT:
            killer.start()
        try:
            return self.place.door.generate(**life.case, rid=name)
        except urllib.error.HTTPError as error:
            _expect("abort", error)
            return None
        finally:
            if life.fate == ABORT:
                killer.join()


class Operator:
    """One who flushes, pauses, updates weights and looks at health while requests run."""

    def __init__(self, place: Place, tally: Tally, seed: int) -> None:
        self.place = place
        self.tally = tally
        self.draw = random.Random(seed)
        self.server = place.operated[0]
        self.acts = [self._flush, self._pause, self._look]
        if place.updates:
            self.acts += [self._update_between]
            self.acts += [self._update] * ("retract" in place.pauses)

    def work_until(self, deadline: float, pace: float) -> None:
        """Do one thing after another, ``pace`` seconds apart on average."""
        while time.monotonic() < deadline and not self.place.has_ended():
            self.server, act = self.draw.choice(self.place.operated), self.draw.choice(self.acts)
            try:
                self.tally.add(f"operator: {act()}")
            except BROKEN as error:
                self.tally.lose(act.__name__, error)
            time.sleep(self.draw.expovariate(1 / pace))

    def _flush(self) -> str:
        try:
            self.server.request("/flush_cache", {})
        except urllib.error.HTTPError as error:
            _expect("Flush cache failed", error)  # requests are running
            return "flush refused while busy"
        return "flush"

    def _pause(self) -> str:
        mode = self.draw.choice(self.place.pauses)
        self.tally.num_aborting_pauses += mode == "abort"
        self.server.request("/pause_generation", {"mode": mode})
        time.sleep(self.draw.random())
        self.server.request("/continue_generation", {})
        self.tally.num_aborting_pauses += mode == "abort"
        return f"pause, {mode}"

    def _update(self) -> str:
        self.server.request("/pause_generation", {"mode": "retract"})
        flushed = self._load_weights()
        self.server.request("/continue_generation", {})
        return f"weights updated in a pause{flushed}"

    def _update_between(self) -> str:
        return f"weights updated between requests{self._load_weights()}"

    def _load_weights(self) -> str:
        try:
            self.server.request("/update_weights_from_disk", {"model_path": str(self.place.model)})
        except urllib.error.HTTPError as error:
            _expect("Weights were updated, but the cache was not flushed", error)
            return ", not flushed"
        return ""

    def _look(self) -> str:
        assert self.server.request("/dynts/health")["healthy"]
        return "health"


def _expect(reason: str, error: urllib.error.HTTPError) -> None:
    """Let a refusal pass that says this; any other is a loss."""
    text = error.read().decode()
    if reason.lower() not in text.lower():
        raise AssertionError(f"HTTP {error.code}: {text}") from error


def resident_mib(servers: Iterable[Server]) -> float:
    """Resident memory of servers' processes, MiB."""
    roots = [psutil.Process(server.process.pid) for server in servers]
    processes = [one for root in roots for one in (root, *root.children(recursive=True))]
    return sum(one.memory_info().rss for one in processes) / 2**20


def endure(
    place: Place, seconds: float, at_once: int, longest: int, log: TextIO, pace: float = 5
) -> Tally:
    """Let clients and an operator at a place, then see that nothing is left behind.

    Args:
        place: with models of ``tests/e2e/models.py``, and DynTS.
        seconds: until nothing more is sent.
        at_once: clients, each with one request in flight.
        longest: tokens of a request's output, and twice those of its question, at most.
        log: gets a JSON line per minute.
        pace: seconds between two acts of the operator.
    """
    tally, began = Tally(), time.monotonic()
    deadline = began + seconds
    clients = Clients(place, tally, longest, seed=1)
    operator = Operator(place, tally, seed=2)
    with ThreadPoolExecutor(at_once + 1) as pool:
        jobs = [pool.submit(clients.live_until, deadline, number) for number in range(at_once)]
        jobs.append(pool.submit(operator.work_until, deadline, pace))
        while time.monotonic() < deadline and not place.has_ended():
            time.sleep(min(60, max(0, deadline - time.monotonic())))
            line = {"seconds": round(time.monotonic() - began)}
            line["rss_mib"] = round(resident_mib(place.servers))
            print(json.dumps(line | dict(tally.outcomes)), *tally.losses[-1:], file=log, flush=True)
    for job in jobs:
        job.result()
    close_books(place, tally)
    return tally


def close_books(place: Place, tally: Tally) -> None:
    """Ask the books of every server, now that nobody asks for tokens; what is held is lost."""
    for server in place.servers:
        try:
            found = books.close(server)
            assert not any(found.values()), f"an idle server holds {found}"
        except BROKEN as error:
            tally.lose(f"the books of {server.log.stem}", error)
        else:
            tally.books |= found


def clock_leaks(server: Server, num_requests: int, at_once: int, num_blocks: int = 10) -> list[float]:
    """Send short requests in blocks; the resident MiB before and after each block, the server idle.

    Every second request is compacted at least once.
    """
    resident = [resident_mib([server])]
    with ThreadPoolExecutor(at_once) as pool:
        for block in range(num_blocks):
            first = block * num_requests // num_blocks
            last = (block + 1) * num_requests // num_blocks
            for length in pool.map(lambda number: _send_short(server, number), range(first, last)):
                assert length > 0
            server.assert_nothing_leaked()
            resident.append(resident_mib([server]))
    return resident


def _send_short(server: Server, number: int) -> int:
    length = (8, 24)[number % 2]
    own = {"budget": 24, "local_window": 4}
    reply = server.generate(prompt(3 + number % 9, seed=number), length, own)
    assert len(reply["output_ids"]) == length, reply
    assert (reply["meta_info"]["dynts"]["compactions"] > 0) == (number % 2 == 1), reply
    return length


def main() -> int:
    """Run what was asked for, print its figures, and say by the exit status whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--minutes", type=float, help="how long clients and the operator go on")
    what.add_argument("--requests", type=int, help="how many short requests to clock memory over")
    parser.add_argument("--at-once", type=int, default=12, help="requests in flight (12)")
    parser.add_argument("--longest", type=int, default=300, help="tokens of an output, at most (300)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model", default="qwen2", choices=CONFIGS, help="a kind of model (qwen2)")
    where.add_argument("--feature", choices=FEATURES, help="what the server is started with instead")
    parser.add_argument(
        "--logs", type=Path, help="folder for the servers' logs; default: a temporary one"
    )
    parser.add_argument("--keep", action="store_true", help=f"add what came out to {SOAKS.name}")
    args = parser.parse_args()
    unwind_on_sigterm()
    with ExitStack() as stack:
        folder = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        soaks = args.requests is None
        place = stack.enter_context(opened(args.feature, args.model, folder, retracts=soaks))
        return _soak(place, args) if soaks else _clock(place.servers[0], args)


def _soak(place: Place, args: argparse.Namespace) -> int:
    tally = endure(place, args.minutes * 60, args.at_once, args.longest, sys.stdout)
    for outcome, count in sorted(tally.outcomes.items()):
        print(f"{outcome:<40}{count:>10}")
    print(f"{'tokens of finished requests':<40}{tally.num_tokens:>10}")
    print(f"{'compactions of finished requests':<40}{tally.num_compactions:>10}")
    print(f"{'lost':<40}{len(tally.losses):>10}")
    for loss in tally.losses[:20]:
        print(f"  {loss}")
    if args.keep:
        publish(SOAKS, _result(tally, args), ("soaked",))
    return 1 if tally.losses else 0


def _result(tally: Tally, args: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a soak."""
    acts = {name.removeprefix("operator: "): n for name, n in tally.outcomes.items() if ":" in name}
    fates = {name: tally.outcomes[name] for name in ("finished", "aborted", "hung up", "refused")}
    return {
        "soaked": args.feature or args.model,
        "of": "families" if args.feature is None else "features",
        "model": spec_of(args.feature, args.model).model,
        "minutes": args.minutes,
        "requests": sum(fates.values()) + tally.outcomes["lost"],
        **fates,
        "operator": acts,
        "tokens": tally.num_tokens,
        "compactions": tally.num_compactions,
        "books": tally.books,
        "losses": tally.losses,
        **provenance("other work beside it"),
        "command": _command(args),
    }


def _command(args: argparse.Namespace) -> str:
    """The line that does the same again, wherever this one kept its logs."""
    where = ("--model", args.model) if args.feature is None else ("--feature", args.feature)
    line = ["python", "-m", "tests.e2e.endurance", "--minutes", f"{args.minutes:g}", *where]
    line += ["--at-once", str(args.at_once), "--longest", str(args.longest), "--keep"]
    return shlex.join(line)


def _clock(server: Server, args: argparse.Namespace) -> int:
    resident = clock_leaks(server, args.requests, args.at_once)
    for block, mib in enumerate(resident):
        print(f"after {block * args.requests // 10:>7} requests: {mib:8.1f} MiB resident, 0 slots in use")
    half = args.requests / 2
    grown = (resident[-1] - resident[5]) * 2**20 / half
    print(f"second half: {grown:.0f} bytes per request; lost 0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
