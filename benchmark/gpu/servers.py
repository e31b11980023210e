"""Both sides' servers: started with the same flags, watched while they run, ended by their own pid."""

import argparse
import tempfile
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmark.gpu.models import THINK_END, THINK_START, TOKENIZER_FOLDER, write_model
from benchmark.harness.shapes import CONFIGS, TINY, WINDOWS
from benchmark.harness.windows import windows_of
from benchmark.simulation.job import SIDES, STOCK
from benchmark.simulation.launch import PLUGINS
from sgl_dynts.config import DynTSConfig
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import one_thread, running, unwind_on_sigterm
from sgl_dynts.window_flags import add_window_flags

Measured = TypeVar("Measured")
SAMPLE_SECONDS = 0.25
FLUSH_SECONDS = 30
TINY_POOL = 4000
INCREMENTS = "--incremental-streaming-output"
"""Chunks that repeat all text so far keep the load generator, one thread, busier than a GPU: work that
grows with the square of the outputs' length."""
TINY_MEMORY_FRACTION = 0.1
SHARED_MEMORY_FRACTION = 0.8
"""Of the memory that is free when a server starts; the other takes its part of that. It must not refuse
the pool, whose size is given."""
MODEL_FOLDER = "model"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""All files are here; a machine without a network would wait for each that is asked for elsewhere."""


@dataclass(frozen=True)
class Setup:
    """What both servers of a run have in common.

    ``pool_tokens`` None means what SGLang makes of the memory. ``flags`` are further arguments.
    ``stock_attention`` names the attention backend of the stock side, None for SGLang's own choice.
    """

    shape: str
    windows: DynTSConfig
    pool_tokens: int | None
    flags: tuple[str, ...]
    start_seconds: float
    on_gpu: bool
    stock_attention: str | None = None
    side_by_side: bool = False
    """Whether both servers share the device; ``pool_tokens`` is then needed."""
    graph_batch: int | None = None
    """Largest batch of a CUDA graph, None for SGLang's own; fewer graphs are sooner captured."""
    environment: tuple[tuple[str, str], ...] = ()
    """More of SGLang's variables, of both sides."""
    logs: Path | None = None
    """Folder that the servers' logs are kept in; None: they go with the model."""


@dataclass(frozen=True)
class Load:
    """What a server said about itself at one moment.

    ``used_tokens`` are KV slots of running requests, the idle prefix tree not counted.
    """

    seconds: float
    used_tokens: int
    running: int


@dataclass
class Watch:
    """Samples of a server's load, ``seconds`` counted from the first."""

    loads: list[Load] = field(default_factory=list)

    @property
    def peak_tokens(self) -> int:
        """Most KV tokens seen; a peak between two samples is missed."""
        return max((load.used_tokens for load in self.loads), default=0)

    @property
    def peak_running(self) -> int:
        """Most running requests seen."""
        return max((load.running for load in self.loads), default=0)


@dataclass(frozen=True)
class RunningServer:
    """One side's server that answers."""

    side: str
    setup: Setup
    model: Path
    client: Client

    @property
    def pool_tokens(self) -> int:
        """KV tokens of its pool."""
        return sum(load["max_total_num_tokens"] for load in self._loads())

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Return the greedy tokens of exactly this length, of prompts that are sent in one request."""
        params = {"max_new_tokens": output_len, "temperature": 0, "ignore_eos": True}
        replies = self.client.call("/generate", {"input_ids": prompts, "sampling_params": params})
        return [reply["output_ids"] for reply in replies]

    def flush_cache(self) -> None:
        """Forget every prompt, as soon as nothing runs.

        Raises:
            urllib.error.HTTPError: something still ran after FLUSH_SECONDS.
        """
        self.client.call(f"/flush_cache?timeout={FLUSH_SECONDS}", {})

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """Sample the load in a thread while the block runs."""
        watch, stop = Watch(), threading.Event()
        thread = threading.Thread(target=self._sample, args=(watch, stop), daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            stop.set()
            thread.join()

    def _sample(self, watch: Watch, stop: threading.Event) -> None:
        start = time.perf_counter()
        while not stop.wait(SAMPLE_SECONDS):
            with suppress(urllib.error.URLError, TimeoutError):  # a busy server misses a sample
                watch.loads.append(load_of(self._loads(), time.perf_counter() - start))

    def _loads(self) -> list[dict[str, Any]]:
        return self.client.loads()


def load_of(loads: list[dict[str, Any]], seconds: float) -> Load:
    """Add up what ``/v1/loads`` says of each data-parallel rank."""
    used = sum(load["num_used_tokens"] for load in loads)
    return Load(seconds, used, sum(load["num_running_reqs"] for load in loads))


def arguments_of(setup: Setup, side: str, model: Path) -> list[str]:
    """Return the arguments of one side's server; only its attention and DynTS's own flags differ."""
    values: dict[str, Any] = {
        "model-path": model,
        "tokenizer-path": model / TOKENIZER_FOLDER,
        "load-format": "dummy",
        "dtype": CONFIGS[setup.shape]["dtype"],
        "log-level": "warning",
    }
    if setup.pool_tokens:
        values["max-total-tokens"] = setup.pool_tokens
    if setup.side_by_side:
        values["mem-fraction-static"] = SHARED_MEMORY_FRACTION
    if setup.graph_batch:
        values["cuda-graph-max-bs-decode"] = setup.graph_batch
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*words, INCREMENTS, *side_flags(setup, side), *cpu_flags(setup), *setup.flags]


def side_flags(setup: Setup, side: str) -> list[str]:
    """Return the arguments that one side alone has."""
    if side == STOCK:
        return ["--attention-backend", setup.stock_attention] if setup.stock_attention else []
    return [
        *("--attention-backend", "dynts"),
        *("--dynts-think-start", THINK_START, "--dynts-think-end", THINK_END),
        *setup.windows.flags("--dynts-"),
    ]


def cpu_flags(setup: Setup) -> list[str]:
    """Return what a machine without a GPU needs beside them."""
    if setup.on_gpu:
        return []
    return ["--mem-fraction-static", str(TINY_MEMORY_FRACTION), "--skip-server-warmup"]


def environment_of(setup: Setup, side: str) -> dict[str, str]:
    """Return SGLang's variables of one side; only the DynTS side loads the plug-in."""
    common = {"SGLANG_PLUGINS": PLUGINS[side], **OFFLINE, **dict(setup.environment)}
    if setup.on_gpu:
        return common
    return {**common, **one_thread()}


@contextmanager
def serve(setup: Setup, side: str, folder: Path) -> Iterator[RunningServer]:
    """Start one side's server and end it afterwards.

    Args:
        setup: of both sides.
        side: ``stock`` or ``dynts``.
        folder: of :func:`workplace`; the log goes there unless the set-up keeps it elsewhere.

    Raises:
        ServerError: it ended, or did not answer in time.
    """
    model = folder / MODEL_FOLDER
    words, environment = arguments_of(setup, side, model), environment_of(setup, side)
    log = (setup.logs or folder) / f"{side}.log"
    with running(words, log, environment, setup.start_seconds) as client:
        yield RunningServer(side, setup, model, client)


@contextmanager
def workplace(setup: Setup) -> Iterator[Path]:
    """Give a folder with the model for as long as the block, which a termination signal ends properly."""
    unwind_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="dynts-gpu-") as folder:
        write_model(setup.shape, Path(folder) / MODEL_FOLDER)
        yield Path(folder)


def run_sides(setup: Setup, measure: Callable[[RunningServer], Measured]) -> dict[str, Measured]:
    """Measure stock, then DynTS, each with the device to itself unless both are to share it."""
    if setup.side_by_side:
        with side_by_side(setup) as servers:
            return {side: measure(servers[side]) for side in SIDES}
    with workplace(setup) as folder:
        measured = {}
        for side in SIDES:
            with serve(setup, side, folder) as server:
                measured[side] = measure(server)
        return measured


@contextmanager
def side_by_side(setup: Setup) -> Iterator[dict[str, RunningServer]]:
    """Start both sides' servers at once and end them afterwards; only one may be given work at a time.

    Args:
        setup: of both, with pools that fit the device together.

    Raises:
        ServerError: one ended, or did not answer in time.
    """
    with (
        workplace(setup) as folder,
        ExitStack() as stack,
        ThreadPoolExecutor(len(SIDES)) as pool,
    ):
        servers = [serve(setup, side, folder) for side in SIDES]
        yield dict(zip(SIDES, pool.map(stack.enter_context, servers), strict=True))


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every command that starts servers takes."""
    add = parser.add_argument
    add("--shape", default="qwen-7b", choices=sorted(CONFIGS), help="tiny runs on a CPU too")
    add("--pool-tokens", type=int, help="KV tokens of both pools; default: what fits")
    add_window_flags(parser, "the paper's for the shape")
    add("--flags", default="", help="more arguments of both servers, in one string")
    add("--stock-attention-backend", help="of the stock side; default: SGLang's own choice")
    add("--start-seconds", type=float, default=300, help="in which a server must answer")
    add("--side-by-side", action="store_true", help="both servers at once; needs --pool-tokens")
    add("--graph-batch", type=int, help="largest batch of a CUDA graph; default: SGLang's own")
    add("--logs", type=Path, help="folder that keeps the servers' logs; default: they are not kept")


def setup_of(args: argparse.Namespace) -> Setup:
    """Build the set-up that the command line names."""
    windows = windows_of(args, WINDOWS[args.shape])
    on_gpu = torch.cuda.is_available()
    if not on_gpu and args.shape != TINY:
        raise SystemExit(f"--shape {args.shape} needs a GPU and there is none; use --shape {TINY}")
    pool = args.pool_tokens or (TINY_POOL if args.shape == TINY else None)
    if args.side_by_side and not pool:
        raise SystemExit("--side-by-side needs --pool-tokens: neither server may take all memory")
    if args.logs:
        args.logs.mkdir(parents=True, exist_ok=True)
    return Setup(
        shape=args.shape,
        windows=windows,
        pool_tokens=pool,
        flags=tuple(args.flags.split()),
        start_seconds=args.start_seconds,
        on_gpu=on_gpu,
        stock_attention=args.stock_attention_backend,
        side_by_side=args.side_by_side and on_gpu,
        graph_batch=args.graph_batch if on_gpu else None,
        logs=args.logs,
    )
