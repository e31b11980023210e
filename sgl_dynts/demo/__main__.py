"""The demo: a real SGLang server thinks a ledger through while it holds a part of its KV cache.

    python3 -m sgl_dynts.demo

Sets up the environment, starts the server with the shipped model, asks, prints what was held and
ends the server. Ends with 0 if every answer is right and every request was compacted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import textwrap
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager

from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sgl_dynts.demo.screen import DemoError, Reply, answer_of, follow, print_comparison, print_question
from sgl_dynts.environment import SetupError, enter
from sgl_dynts.harness.client import LOST
from sgl_dynts.harness.server import (
    HOST,
    Server,
    ServerError,
    free_port,
    new_log,
    one_thread,
    unwind_on_sigterm,
)

SPARE_TOKENS = 16
LOG_LINES_SHOWN = ("DynTS predictor:", "DynTS is on:")


def main() -> int:
    """Run the demo and return its exit status."""
    args = _parse_args()
    try:
        enter("sgl_dynts.demo", say=lambda line: print(line, flush=True))
        return _run(args)
    except (SetupError, DemoError, ServerError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m sgl_dynts.demo", description=__doc__)
    parser.add_argument("--problems", type=int, default=1, help="how many ledgers to ask (1)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first test ledger (0)")
    parser.add_argument("--port", type=int, help="of the server; default: a free one")
    parser.add_argument("--keep", action="store_true", help="leave the server running at the end")
    args = parser.parse_args()
    if args.problems < 1 or not 0 <= args.seed <= len(ledger.TEST_SEEDS) - args.problems:
        parser.error("--problems must be at least 1 and --seed at least 0")
    return args


def _run(args: argparse.Namespace) -> int:
    if not (demo_model_path() / "config.json").is_file():
        raise DemoError(f"no model in {demo_model_path()}; get a complete copy of this project")
    with _serving(args.port or free_port(), args.keep) as server:
        seeds = ledger.TEST_SEEDS[args.seed : args.seed + args.problems]
        problems = [ledger.make_problem(seed) for seed in seeds]
        results = [
            _ask(server, problem, f"Question {number} of {args.problems}")
            for number, problem in enumerate(problems, 1)
        ]
        print(f"\n{sum(results)} of {args.problems} answered right with a compacted cache.")
        if args.keep:
            _print_examples(server, problems[0])
    return 0 if all(results) else 1


@contextmanager
def _serving(port: int, keep: bool) -> Iterator[Server]:
    """Start a server and end it, unless it is to be kept and nothing failed."""
    unwind_on_sigterm()
    server = _start(port)
    try:
        _wait(server)
        yield server
    except LOST as error:
        raise server.failure(f"{error}: {server.fate()}") from error
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            server.stop()
            print("Server ended.")


def _start(port: int) -> Server:
    """Start the server; nothing is fetched, and one CPU thread is the fastest for so small a model."""
    log = new_log("sgl_dynts_demo_")
    flags = _server_flags()
    environment = {**one_thread(), "HF_HUB_OFFLINE": "1", **os.environ}
    server = Server(flags, log, environment=environment, port=port)
    shown = _shown([*flags, "--host", HOST, "--port", str(port)])
    print(f"SGLang with DynTS:\n  python -m sglang.launch_server {shown}\n  log: {log}")
    return server


def _wait(server: Server) -> None:
    started = time.monotonic()
    server.wait(say=lambda sign: print(f"  {sign}", flush=True))
    print(f"  ready after {time.monotonic() - started:.0f} s at {server.client.url}")
    _print_log_lines(server)


def _server_flags() -> list[str]:
    flags = {
        "--model-path": str(demo_model_path()),
        "--attention-backend": "dynts",
        "--max-total-tokens": "4096",
        "--max-running-requests": "8",
        "--mem-fraction-static": "0.5",
    }
    return [word for pair in flags.items() for word in pair]


def _shown(flags: list[str]) -> str:
    pairs = [shlex.join(flags[i : i + 2]) for i in range(0, len(flags), 2)]
    return " \\\n    ".join(pairs)


def _print_log_lines(server: Server) -> None:
    for line in server.log.read_text(errors="replace").splitlines():
        for start in LOG_LINES_SHOWN:
            if start in line:
                print(textwrap.indent(textwrap.fill(line[line.index(start) :], 96), "  "))


def _ask(server: Server, problem: ledger.Problem, title: str) -> bool:
    """Ask twice, with DynTS and with the full cache; return whether the former did well."""
    print(f"\n{title}: a ledger of {problem.num_steps} entries, all mod 10")
    print_question(problem.question)
    max_new_tokens = len(problem.completion.split()) + SPARE_TOKENS
    print(f"\n{'Thinking (remarks shortened)':<72}{'KV tokens held':>16}")
    reply = follow(_generate(server, problem.prompt, max_new_tokens, {"enabled": True}))
    *_, full = _generate(server, problem.prompt, max_new_tokens, {"enabled": False})
    print(f"\n  answer    {answer_of(reply)}\n  expected  {problem.answer}\n")
    print_comparison(problem, reply, full)
    return ledger.is_correct(problem, reply.text) and reply.window["compactions"] >= 1


def _generate(server: Server, text: str, max_new_tokens: int, dynts: dict) -> Iterator[Reply]:
    """Yield the growing reply to ``text``, decoded greedily with these DynTS options.

    Raises:
        DemoError: the server refused the request, or failed.
    """
    sampling = {
        "temperature": 0,
        "max_new_tokens": max_new_tokens,
        "skip_special_tokens": False,
        "custom_params": {"dynts": dynts},
    }
    try:
        for event in server.client.stream("/generate", {"text": text, "sampling_params": sampling}):
            if "error" in event:
                raise DemoError(f"the server failed: {event['error']['message']}")
            yield Reply(event["text"], event["meta_info"])
    except urllib.error.HTTPError as error:
        raise DemoError(f"the server refused: {error.read().decode(errors='replace')}") from error


def _print_examples(server: Server, problem: ledger.Problem) -> None:
    url = server.client.url
    body = {
        "text": problem.prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 700},
    }
    print(f"""
The server runs on at {url}. Ask it with curl:

curl -s {url}/generate -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}

or with the OpenAI client:

from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="none")
reply = client.chat.completions.create(
    model="default",
    messages=[{{"role": "user", "content": "{problem.question}"}}],
    temperature=0,
    max_tokens=700,
    extra_body={{"custom_params": {{"dynts": {{"budget": 400}}}}, "return_meta_info": True}},
)
print(reply.choices[0].message.content)
print(reply.choices[0].meta_info["dynts"])

End it with: kill {server.process.pid}""")


if __name__ == "__main__":
    sys.exit(main())
