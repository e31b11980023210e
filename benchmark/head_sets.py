"""What a set of tokens per KV head costs: in a compaction round, and in a server under load.

A round is timed by itself, in torch on this device: rewriting the rows, which one set needs too; then
choosing for each head, and moving K and V. A server is asked by turns under a policy with one set and
under the same policy with a set per head, all requests at once; nothing else differs.

    python -m benchmark.head_sets --due 1 4 16 --window 2500 5000
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from benchmark.gpu.kernels import compaction_milliseconds, head_round
from benchmark.gpu.report import device_name
from benchmark.gpu.timing import milliseconds, nothing, this_device
from benchmark.harness.provenance import RESULTS, parser_of, provenance, publish
from benchmark.harness.shapes import CONFIGS, WINDOWS
from benchmark.harness.tables import HEAD_ROUNDS, HEAD_SERVERS, filled
from benchmark.ledgers.evaluate import problems_of
from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import one_thread, running, unwind_on_sigterm

ROUND, SERVER = "round", "server"
ONE_SET, PER_HEAD = "random", "random_per_head"
ROUND_SETTINGS = ("kind", "shape", "due", "window")
SERVER_SETTINGS = ("kind", "shape", "running", "length", "turns")


def main(arguments: list[str] | None = None) -> None:
    """Time the rounds, then the server, and keep a row for each."""
    unwind_on_sigterm()
    args = parse(arguments)
    print(*filled(HEAD_ROUNDS, []), sep="\n", flush=True)
    for due, window in product(args.due, args.window):
        row = measure_round(args, due, window)
        print(filled(HEAD_ROUNDS, [row])[-1], flush=True)
        publish(args.out, row, ROUND_SETTINGS)
    if args.turns:
        row = measure_server(args)
        print(*filled(HEAD_SERVERS, [row]), sep="\n", flush=True)
        publish(args.out, row, SERVER_SETTINGS)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of("head_sets", __doc__)
    add = parser.add_argument
    add("--shape", choices=tuple(CONFIGS), default="qwen-7b", help="K and V of a round, and its windows")
    add("--due", nargs="*", type=int, default=[1, 4, 16], help="requests that a round compacts")
    add("--window", nargs="*", type=int, default=[2500, 5000], help="tokens that each of them holds")
    add("--repeats", type=int, default=5, help="of a round; the median counts")
    add("--running", type=int, default=32, help="requests of the server at once")
    add("--length", type=int, default=600, help="tokens that each of them writes")
    add("--turns", type=int, default=5, help="of the server with each policy; 0: no server")
    add("--out", type=Path, default=RESULTS / "head_sets.json", help="JSON list of rows")
    return parser.parse_args(arguments)


def measure_round(args: argparse.Namespace, due: int, window: int) -> dict[str, Any]:
    """Return what each part of a round takes, and how much it moves."""
    device = this_device()
    work = head_round(args.shape, due, window, device)
    moves = work.choose()
    return {
        "kind": ROUND,
        "shape": args.shape,
        "due": due,
        "window": window,
        "rewrite_ms": compaction_milliseconds(WINDOWS[args.shape], due, window, device, args.repeats),
        "choice_ms": milliseconds(work.choose, nothing, device, args.repeats),
        "moves_ms": milliseconds(lambda: work.move(moves), nothing, device, args.repeats),
        "moved_mb": work.moved_bytes(moves) / 1e6,
        **provenance("torch, no server"),
        "device": device_name(),
    }


def measure_server(args: argparse.Namespace) -> dict[str, Any]:
    """Ask one server by turns, and return the time per token of both policies."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running(server_words(args), Path(folder) / "server.log", one_thread()) as client,
    ):
        for policy in (ONE_SET, PER_HEAD):
            ask_all(client, args, policy)  # makes what is made at the first use
        pairs = [
            {policy: ask_all(client, args, policy) for policy in order(index)}
            for index in range(args.turns)
        ]
    ratios = [pair[PER_HEAD]["ms_per_token"] / pair[ONE_SET]["ms_per_token"] for pair in pairs]
    return {
        "kind": SERVER,
        "shape": demo_model_path().name,
        "running": args.running,
        "length": args.length,
        "turns": args.turns,
        "one_set_ms": statistics.median(pair[ONE_SET]["ms_per_token"] for pair in pairs),
        "per_head_ms": statistics.median(pair[PER_HEAD]["ms_per_token"] for pair in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "compactions": pairs[-1][PER_HEAD]["compactions"],
        **provenance("a server on a CPU"),
    }


def order(index: int) -> tuple[str, str]:
    """Return the policies, the other one first in every second turn."""
    return (PER_HEAD, ONE_SET) if index % 2 else (ONE_SET, PER_HEAD)


def server_words(args: argparse.Namespace) -> list[str]:
    """Return the arguments of a server whose pool holds all requests."""
    tokens = args.running * (100 + args.length)
    words = ["--model-path", str(demo_model_path()), "--attention-backend", "dynts"]
    words += ["--dtype", "float32", "--mem-fraction-static", "0.5", "--skip-server-warmup"]
    return [*words, "--max-total-tokens", str(tokens), "--disable-radix-cache"]


def ask_all(client: Client, args: argparse.Namespace, policy: str) -> dict[str, Any]:
    """Let all requests think at once under one policy; the server's milliseconds per token."""
    vocabulary = ledger.Vocabulary()
    params = {
        "max_new_tokens": args.length,
        "temperature": 0,
        "ignore_eos": True,
        "logit_bias": {str(vocabulary.ids[ledger.END_THINK]): -100},  # nobody ends early
        "custom_params": {"dynts": {"policy": policy}},
    }

    def ask(problem: ledger.Problem) -> dict[str, Any]:
        body = {"input_ids": vocabulary.encode(problem.prompt), "sampling_params": params}
        return client.call("/generate", body)["meta_info"]

    problems = problems_of("test", args.running, ledger.DEFAULT_STEPS)
    began = time.perf_counter()
    with ThreadPoolExecutor(args.running) as pool:
        numbers = list(pool.map(ask, problems))
    spent = time.perf_counter() - began
    return {
        "ms_per_token": 1e3 * spent / sum(meta["completion_tokens"] for meta in numbers),
        "compactions": sum(meta["dynts"]["compactions"] for meta in numbers),
    }


if __name__ == "__main__":
    main()
