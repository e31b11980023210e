"""Whether a server answers every request of a crowd whose windows compact every eight tokens.

    python -m benchmark.gpu.crowds --servers 10 --logs build/gpu/crowds

Two of 15 servers once closed a connection without an answer under such a load. The demo's model is
served, with DynTS alone. Each server is asked all questions with the full cache, then twice with windows
of 185 tokens. What a server that loses a request leaves behind is kept: its log, whether it still runs,
and the kernel's last lines.
"""

import argparse
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmark.gpu.report import device_name, parser_with_out
from benchmark.gpu.servers import OFFLINE
from benchmark.harness.provenance import RESULTS, provenance, publish
from sgl_dynts.demo import ledger
from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import Server, one_thread, unwind_on_sigterm

NARROW = {"budget": 185, "local_window": 41, "keep_ratio": 0.95}
LOADS = ({"enabled": False}, NARROW, NARROW)
OUTPUT_LEN = 690
POOL_PER_REQUEST = 1000
"""KV tokens, so that a question and its whole output fit."""
DEMO = Path(ledger.__file__).parent / "model"
SETTINGS = ("device", "commit", "server", "requests", "at_once")


def main() -> None:
    """Ask so many servers; exits with 1 if one lost a request."""
    args = parse()
    unwind_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        args.logs = args.logs or Path(folder)
        args.logs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(args.at_once) as pool:
            results = list(pool.map(lambda number: ask(args, number), range(args.servers)))
    lost = sum(result["lost"] for result in results)
    print(f"{len(results)} servers, {lost} requests lost")
    raise SystemExit(lost > 0)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_with_out("gpu.crowds", __doc__)
    parser.set_defaults(out=RESULTS / "crowds.json")
    add = parser.add_argument
    add("--servers", type=int, default=10)
    add("--at-once", type=int, default=1, help="servers that run at the same time")
    add("--requests", type=int, default=500, help="of each load, all sent at once")
    add("--model", type=Path, default=DEMO, help="folder of a model of ledgers")
    add("--flags", default="", help="more arguments of every server, in one string")
    add("--logs", type=Path, help="folder that keeps the servers' logs; default: they are not kept")
    add("--start-seconds", type=float, default=300, help="in which a server must answer")
    return parser.parse_args()


def ask(args: argparse.Namespace, number: int) -> dict[str, Any]:
    """Start a server, send it the loads, keep and return what became of them."""
    words = ["--model-path", str(args.model), "--attention-backend", "dynts", "--max-total-tokens"]
    words += [str(args.requests * POOL_PER_REQUEST), "--max-running-requests", str(args.requests)]
    words += ["--mem-fraction-static", str(0.5 / args.at_once), *args.flags.split()]
    log = args.logs / f"{number}.log"
    started = time.monotonic()
    environment = OFFLINE if torch.cuda.is_available() else OFFLINE | one_thread()
    with Server(words, log, environment=environment) as server:
        server.wait(args.start_seconds)
        errors = [error for load in LOADS for error in crowd(server.client, args.requests, load)]
        fate = server.fate() if errors else "the server still runs"
    result = {"server": number, "requests": len(LOADS) * args.requests, "lost": len(errors), "fate": fate}
    result |= {"errors": sorted(set(errors))[:5], "at_once": args.at_once, "gpu": device_name()}
    result["seconds"] = round(time.monotonic() - started)
    if errors:
        (args.logs / "dmesg.log").write_text(last_words_of_the_kernel())
    publish(args.out, result | provenance("measured") | {"commit": args.commit}, SETTINGS)
    return result


def crowd(client: Client, num_requests: int, options: dict[str, Any]) -> list[str]:
    """Send all questions at once; returns what each that was not answered whole ended with."""
    vocabulary = ledger.Vocabulary()
    problems = [
        ledger.make_problem_of_length(number, ledger.DEFAULT_STEPS) for number in range(num_requests)
    ]
    prompts = [vocabulary.encode(problem.prompt) for problem in problems]
    with ThreadPoolExecutor(num_requests) as pool:
        return [
            error for error in pool.map(lambda prompt: lose(client, prompt, options), prompts) if error
        ]


def lose(client: Client, question: list[int], options: dict[str, Any]) -> str | None:
    """Ask one question; returns what went wrong, None if nothing did."""
    params = {"max_new_tokens": OUTPUT_LEN, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": question, "sampling_params": params | {"custom_params": {"dynts": options}}}
    try:
        found = len(client.call("/generate", body)["output_ids"])
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None if found == OUTPUT_LEN else f"{found} tokens instead of {OUTPUT_LEN}"


def last_words_of_the_kernel() -> str:
    """Return the end of the kernel's log, empty where it may not be read."""
    with suppress(OSError):
        return subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout[-20_000:]
    return ""


if __name__ == "__main__":
    main()
