"""A full server: output tokens per second while the pool stays full, stock SGLang beside DynTS.

    python -m benchmark.gpu.whole_pool --shape qwen-7b --forecast    # simulates this job, on any machine
    python -m benchmark.gpu.whole_pool --shape qwen-7b --minutes 9
    python -m benchmark.gpu.whole_pool --shape tiny                  # on a CPU

At the paper's lengths a pool needs hours to show its steady state. So all lengths are divided by four,
SGLang's estimate of unknown lengths too, and the pool holds as many requests as at full length: every
proportion stays. More clients than fit each send their next request when one is answered. The first
requests end evenly spaced, as on a server that has run for a while. The server's own counter gives the
tokens, from the end of this first wave to the last request that is sent. Both servers are up at once and
are loaded in turn, so the device must have room for both.
"""

import argparse
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import ceil
from statistics import fmean
from typing import Any

from benchmark.gpu.models import FIRST_WORD
from benchmark.gpu.report import PACKAGES, device_name, parser_with_out
from benchmark.gpu.servers import (
    RunningServer,
    Setup,
    Watch,
    add_server_arguments,
    setup_of,
    side_by_side,
)
from benchmark.gpu.serving import ServingError
from benchmark.harness.provenance import RESULTS, provenance, publish
from benchmark.harness.shapes import CONFIGS, TINY, WINDOWS, gpu_named, roofline_shape
from benchmark.predict import Outlook
from benchmark.simulation.job import DYNTS, SIDES, STOCK, Job, ServerSpec, Workload, plan_requests, steady
from benchmark.simulation.launch import SideProcess
from sgl_dynts.config import DynTSConfig
from sgl_dynts.roofline import GPUS, Gpu

PROGRAM = "gpu.whole_pool"
SHRINK = 4
"""What all lengths are divided by."""
CLIP = "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION"
CLIENTS = 1.25
"""Clients, as a multiple of the compacted requests that fit."""
LIVES = 1.5
"""How long the counted stretch is, in lifetimes of a request."""
TICK_SECONDS = 0.1
SECONDS_TO_END = 20
"""Of the minutes that are given: kept for ending requests and servers."""
JOB = ("gpu", "shape", "question_len", "output_len", "pool_tokens", "windows", "lives")
SETTINGS = ("kind", *JOB, "commit")


@dataclass(frozen=True)
class Whole:
    """What is served: lengths in tokens; the same for both sides."""

    shape: str
    windows: DynTSConfig
    pool_tokens: int
    question_len: int
    output_len: int
    clip: int
    lives: float = LIVES

    def outlook(self, gpu: Gpu) -> Outlook:
        """Return the roofline's view of it."""
        shape = roofline_shape(self.shape)
        return Outlook(gpu, shape, self.windows, self.question_len, self.output_len, self.pool_tokens)

    def fitting(self, side: str) -> int:
        """Requests that the pool holds, by their mean length."""
        return self.outlook(GPUS["h200"]).fitting(side)

    @property
    def clients(self) -> int:
        """Requests that are outstanding at any time."""
        return ceil(CLIENTS * self.fitting(DYNTS))

    def workload(self, side: str) -> Workload:
        """Return the requests of one side: its first wave, the counted lifetimes, what then waits."""
        load = Workload(0, self.output_len, self.question_len, clients=self.clients)
        return steady(load, self.fitting(side), self.lives)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "windows": list(self.windows.given().values()), "clients": self.clients}


def quarter(shape: str, pool_tokens: int) -> Whole:
    """Return the paper's job of a shape with all lengths divided by SHRINK."""
    windows = WINDOWS[shape]
    budget, local_window = windows.budget // SHRINK, windows.local_window // SHRINK
    windows = DynTSConfig(budget, local_window, windows.keep_ratio)
    return Whole(shape, windows, pool_tokens, 200 // SHRINK, 16384 // SHRINK, 4096 // SHRINK)


JOBS = {
    "qwen-7b": quarter("qwen-7b", 240_000),
    "llama-8b": quarter("llama-8b", 104_000),
    TINY: Whole(TINY, WINDOWS[TINY], 2000, 20, 300, 75),
}


@dataclass(frozen=True)
class Measured:
    """One side; ``running`` requests and ``held_tokens`` are means over the counted stretch."""

    tokens_per_s: float
    seconds: float
    running: float
    peak_running: int
    held_tokens: float
    retractions: int
    answered: int


class ClosedLoop:
    """Clients of one server; each sends its next request when one is answered."""

    def __init__(self, server: RunningServer, workload: Workload) -> None:
        words = range(FIRST_WORD, CONFIGS[server.setup.shape]["vocab_size"])
        planned = plan_requests(workload, words)
        self.answered = 0
        self._server = server
        self._clients = workload.clients or 1
        self._to_send = deque((request.question, request.output_len) for request in planned)
        self._errors: list[BaseException] = []

    @property
    def has_sent_all(self) -> bool:
        """Whether no request is left to send."""
        return not self._to_send

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send requests while the block runs; what is unanswered at its end is aborted."""
        with ThreadPoolExecutor(self._clients) as pool:
            for _ in range(self._clients):
                pool.submit(self._live)
            try:
                yield
            finally:
                self._to_send.clear()
                self._server.client.call("/abort_request", {"rid": "", "abort_all": True})

    def check(self) -> None:
        """Raise what a client ran into."""
        if self._errors:
            raise self._errors[0]

    def _live(self) -> None:
        try:
            while self._to_send:
                self._ask(*self._to_send.popleft())
        except BaseException as error:  # noqa: BLE001  told to the thread that measures
            self._errors.append(error)

    def _ask(self, question: tuple[int, ...], output_len: int) -> None:
        params = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": list(question), "sampling_params": params}
        meta = self._server.client.call("/generate", body)["meta_info"]
        reason = meta["finish_reason"]["type"]
        if reason == "length" and meta["completion_tokens"] != output_len:
            raise ServingError(f"{meta['completion_tokens']} tokens instead of {output_len}")
        self.answered += reason == "length"


def main() -> None:
    """Forecast or measure."""
    began = time.monotonic()
    args = parse()
    job = JOBS[args.shape]
    job = replace(job, lives=args.lives, pool_tokens=args.pool_tokens or job.pool_tokens)
    if args.forecast:
        forecast(job, args)
        return
    deadline = began + 60 * args.minutes - SECONDS_TO_END
    measure_sides(job, args, deadline)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out(PROGRAM, __doc__)
    parser.set_defaults(out=RESULTS / "whole_pool.json")
    add_server_arguments(parser)
    add = parser.add_argument
    add("--forecast", action="store_true", help="simulate instead of measuring, and keep the result")
    add("--gpu", default="h200", choices=sorted(GPUS), help="of the forecast")
    add("--lives", type=float, default=LIVES, help="counted stretch, in lifetimes of a request")
    add("--minutes", type=float, default=15, help="after which it has ended, servers included")
    return parser.parse_args()


def forecast(job: Whole, args: argparse.Namespace) -> None:
    """Simulate both sides and keep what comes out."""
    print_roofline(job, GPUS[args.gpu])
    sides = {side: simulated(job, args.gpu, side) for side in SIDES}
    keep(job, args, "simulated", args.gpu, sides)


def simulated(job: Whole, gpu: str, side: str) -> dict[str, Any]:
    """Simulate one side: SGLang's scheduler and our hooks, the device's time by the roofline."""
    spec = ServerSpec(
        shape=job.shape,
        gpu=gpu,
        pool_tokens=job.pool_tokens,
        windows=job.windows,
        context_len=job.question_len + job.output_len + 64,
    )
    with SideProcess(side, **{CLIP: str(job.clip)}) as process:
        found = process.run(Job(spec, job.workload(side)))
    names = ("tokens_per_s", "running", "peak_running", "held_tokens", "retractions")
    return {name: found[name] for name in names} | {"seconds": found["window_s"]}


def measure_sides(job: Whole, args: argparse.Namespace, deadline: float) -> None:
    """Start both servers, load stock, then DynTS; each is kept as soon as it is measured."""
    gpu = gpu_named(device_name())
    if gpu is not None:
        print_roofline(job, gpu)
    print_kept_forecast(job, args, "" if gpu is None else gpu.name.lower())
    sides: dict[str, dict[str, Any]] = {}
    with side_by_side(prepared(job, args)) as servers:
        for number, side in enumerate(SIDES):
            left = deadline - time.monotonic()
            until = time.monotonic() + left / (len(SIDES) - number)
            sides[side] = asdict(measure(servers[side], job, until))
            keep(job, args, "measured", device_name(), sides)


def prepared(job: Whole, args: argparse.Namespace) -> Setup:
    """Return what both servers have in common."""
    setup = setup_of(args)
    return replace(
        setup,
        windows=job.windows,
        pool_tokens=job.pool_tokens,
        flags=(*setup.flags, "--enable-metrics"),
        side_by_side=setup.on_gpu,
        graph_batch=setup.graph_batch or (job.clients if setup.on_gpu else None),
        environment=((CLIP, str(job.clip)),),
    )


def measure(server: RunningServer, job: Whole, until: float) -> Measured:
    """Load one server until its stretch is counted.

    Args:
        server: that has nothing else to do.
        job: what is asked of it.
        until: moment of the monotonic clock at which the stretch ends at the latest.

    Raises:
        ServingError: the first wave had not ended by then, or an answer was wrong.
    """
    workload = job.workload(server.side)
    loop = ClosedLoop(server, workload)
    wave = workload.first_wave or 0
    with server.watched() as watch, loop.running():
        if not wait_for(lambda: loop.answered >= wave, loop, until - (until - time.monotonic()) / 3):
            raise ServingError(f"{server.side}: {loop.answered} of the first {wave} ended in time")
        first, start, tokens = len(watch.loads), time.monotonic(), counted(server)
        wait_for(lambda: loop.has_sent_all, loop, until)
        seconds, made = time.monotonic() - start, counted(server) - tokens
        during = Watch(watch.loads[first:])
        retractions = int(counter(server, "sglang:num_retracted_requests_total"))
        answered = loop.answered
    return Measured(
        tokens_per_s=round(made / seconds, 1),
        seconds=round(seconds, 1),
        running=round(fmean(load.running for load in during.loads), 1),
        peak_running=watch.peak_running,
        held_tokens=round(fmean(load.used_tokens for load in during.loads)),
        retractions=retractions,
        answered=answered,
    )


def wait_for(happened: Callable[[], bool], loop: ClosedLoop, until: float) -> bool:
    """Wait until something happened; False where it had not at that moment."""
    while not happened():
        loop.check()
        if time.monotonic() > until:
            return False
        time.sleep(TICK_SECONDS)
    return True


def counted(server: RunningServer) -> float:
    """Tokens that the server has decoded since its start."""
    return counter(server, "sglang:realtime_tokens_total", 'mode="decode"')


def counter(server: RunningServer, name: str, label: str = "") -> float:
    """Return a counter of the server's metrics, all its lines added up; 0 where it has none."""
    lines = str(server.client.call("/metrics")).splitlines()
    pattern = re.compile(rf"{re.escape(name)}(\{{.*\}})? (\S+)")
    found = (pattern.fullmatch(line) for line in lines)
    return sum(float(each[2]) for each in found if each and label in (each[1] or ""))


def keep(
    job: Whole, args: argparse.Namespace, kind: str, gpu: str, sides: dict[str, dict[str, Any]]
) -> None:
    """Print both sides and keep them."""
    stock, dynts = sides.get(STOCK), sides.get(DYNTS)
    ratio = dynts["tokens_per_s"] / stock["tokens_per_s"] if stock and dynts else None
    print_sides(f"{job.shape}, {kind}, {gpu}", sides)
    versions = {name: version(name) for name in PACKAGES}
    result = {"kind": kind, "gpu": gpu, **job.to_json(), **sides, "ratio": ratio, "versions": versions}
    publish(args.out, result | provenance(kind) | {"commit": args.commit}, SETTINGS)


def print_sides(title: str, sides: dict[str, dict[str, Any]]) -> None:
    """Print what was found, for people."""
    print(f"\n{title}")
    for side, found in sides.items():
        print(f"  {side:6}" + ", ".join(f"{name} {value:,}" for name, value in found.items()))
    if len(sides) == len(SIDES):
        print(f"  DynTS / stock: {sides[DYNTS]['tokens_per_s'] / sides[STOCK]['tokens_per_s']:.2f}")


def print_roofline(job: Whole, gpu: Gpu) -> None:
    """Print what the roofline foresees."""
    outlook = job.outlook(gpu)
    rates = {side: outlook.tokens_per_s(side, outlook.fitting(side)) for side in SIDES}
    running = ", ".join(f"{side} {outlook.fitting(side)}" for side in SIDES)
    print(
        f"{job.shape} on one {gpu.name}, roofline: {rates[STOCK]:,.0f} and {rates[DYNTS]:,.0f} tokens/s, "
        f"{rates[DYNTS] / rates[STOCK]:.2f}x; running: {running}",
        flush=True,
    )


def print_kept_forecast(job: Whole, args: argparse.Namespace, gpu: str) -> None:
    """Print what the simulation foresaw for this job, if it was kept."""
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    own = {"gpu": gpu, **job.to_json()}
    simulated_before = [
        result
        for result in results
        if result["kind"] == "simulated" and all(result.get(name) == own[name] for name in JOB)
    ]
    if simulated_before:
        newest = simulated_before[-1]
        print_sides(f"{job.shape}, foreseen, {gpu}", {side: newest[side] for side in SIDES})
        return
    print(f"no forecast of this job is kept in {args.out}; make one with --forecast", flush=True)


if __name__ == "__main__":
    main()
