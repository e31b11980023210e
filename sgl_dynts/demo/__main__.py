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
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sgl_dynts import demo_model_path
from sgl_dynts.demo import ledger
from sgl_dynts.environment import SetupError, enter

HOST = "127.0.0.1"
SECONDS_TO_START = 900
SECONDS_TO_END = 60
SECONDS_BETWEEN_SIGNS = 10
SPARE_TOKENS = 16
LOG_LINES_SHOWN = ("DynTS predictor:", "DynTS is on:")
CLAUSES_SHOWN = 4
END_OF_ENTRY = "done"


class DemoError(RuntimeError):
    """The demo cannot go on; the message is for the user."""


@dataclass(frozen=True)
class Reply:
    """What the server answered: the text and its ``meta_info``."""

    text: str
    meta: dict

    @property
    def window(self) -> dict:
        """The request's DynTS numbers."""
        return self.meta["dynts"]

    @property
    def seq_len(self) -> int:
        """Tokens whose KV was computed: held now or dropped."""
        return self.window["window_len"] + self.window["dropped_tokens"]


class Server:
    """A running ``sglang.launch_server`` with its log in a file."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        """Take hold of a server that was just started."""
        self.process = process
        self.url = url
        self.log = log

    def wait_until_ready(self) -> None:
        """Return once the server answers; print a sign of life now and then.

        Raises:
            DemoError: it ended, or takes too long.
        """
        started = time.monotonic()
        next_sign = started + SECONDS_BETWEEN_SIGNS
        while not self._is_healthy():
            waited = time.monotonic() - started
            if self.process.poll() is not None:
                raise DemoError(f"the server ended with status {self.process.returncode}")
            if waited > SECONDS_TO_START:
                raise DemoError(f"the server did not answer within {SECONDS_TO_START} s")
            if time.monotonic() >= next_sign:
                print(f"  starting ... {waited:.0f} s", flush=True)
                next_sign += SECONDS_BETWEEN_SIGNS
            time.sleep(0.5)
        print(f"  ready after {time.monotonic() - started:.0f} s at {self.url}")

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=30) as response:
                return response.status == 200
        except OSError:
            return False

    def log_lines(self) -> list[str]:
        """Return the log so far."""
        return self.log.read_text(errors="replace").splitlines()

    def generate(self, text: str, max_new_tokens: int, dynts: dict) -> Iterator[Reply]:
        """Yield the growing reply to ``text``, decoded greedily with these DynTS options.

        Raises:
            DemoError: the server refused the request.
        """
        sampling = {
            "temperature": 0,
            "max_new_tokens": max_new_tokens,
            "skip_special_tokens": False,
            "custom_params": {"dynts": dynts},
        }
        body = {"text": text, "sampling_params": sampling, "stream": True}
        request = urllib.request.Request(
            f"{self.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS_TO_START) as response:
                yield from map(_parse_reply, filter(_is_event, response))
        except urllib.error.HTTPError as error:
            raise DemoError(f"the server refused: {error.read().decode(errors='replace')}") from error

    def stop(self) -> None:
        """End the server and the processes it started."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            print("  the server does not end by itself: killing it")
        self._kill_group()
        self.process.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _is_event(line: bytes) -> bool:
    return line.startswith(b"data: {")


def _parse_reply(line: bytes) -> Reply:
    event = json.loads(line.removeprefix(b"data: "))
    if "error" in event:
        raise DemoError(f"the server failed: {event['error']['message']}")
    return Reply(event["text"], event["meta_info"])


def main() -> int:
    """Run the demo and return its exit status."""
    args = _parse_args()
    try:
        enter("sgl_dynts.demo", say=lambda line: print(line, flush=True))
        return _run(args)
    except (SetupError, DemoError) as error:
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
    with _serving(args.port or _free_port(), args.keep) as server:
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
    signal.signal(signal.SIGTERM, _exit_on_signal)
    server = _start(port)
    try:
        server.wait_until_ready()
        _print_log_lines(server)
        yield server
    except BaseException as error:
        if isinstance(error, DemoError):
            _print_log_tail(server)
        server.stop()
        raise
    if not keep:
        server.stop()
        print("Server ended.")


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _start(port: int) -> Server:
    command = [sys.executable, "-m", "sglang.launch_server", *_server_flags(port)]
    descriptor, log = tempfile.mkstemp(prefix="sgl_dynts_demo_", suffix=".log")
    print(f"SGLang with DynTS:\n  python -m sglang.launch_server {_shown(command[3:])}")
    print(f"  log: {log}")
    process = subprocess.Popen(
        command,
        stdout=descriptor,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=_server_environ(),
        start_new_session=True,
    )
    os.close(descriptor)
    return Server(process, f"http://{HOST}:{port}", Path(log))


def _server_flags(port: int) -> list[str]:
    flags = {
        "--model-path": str(demo_model_path()),
        "--attention-backend": "dynts",
        "--host": HOST,
        "--port": str(port),
        "--max-total-tokens": "4096",
        "--max-running-requests": "8",
        "--mem-fraction-static": "0.1",
    }
    return [word for pair in flags.items() for word in pair]


def _shown(flags: list[str]) -> str:
    pairs = [shlex.join(flags[i : i + 2]) for i in range(0, len(flags), 2)]
    return " \\\n    ".join(pairs)


def _server_environ() -> dict[str, str]:
    """One CPU thread, which is the fastest for so small a model; no warnings, nothing fetched."""
    defaults = {
        "OMP_NUM_THREADS": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": str(max(os.sched_getaffinity(0))),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }
    return defaults | os.environ


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _print_log_lines(server: Server) -> None:
    for line in server.log_lines():
        for start in LOG_LINES_SHOWN:
            if start in line:
                print(textwrap.indent(textwrap.fill(line[line.index(start) :], 96), "  "))


def _print_log_tail(server: Server) -> None:
    print(f"\nThe end of {server.log}:", file=sys.stderr)
    for line in server.log_lines()[-30:]:
        print(f"  {line}", file=sys.stderr)


def _ask(server: Server, problem: ledger.Problem, title: str) -> bool:
    """Ask twice, with DynTS and with the full cache; return whether the former did well."""
    print(f"\n{title}: a ledger of {problem.num_steps} entries, all mod 10")
    _print_wrapped(problem.question)
    max_new_tokens = len(problem.completion.split()) + SPARE_TOKENS
    print(f"\n{'Thinking (remarks shortened)':<72}{'KV tokens held':>16}")
    reply = _follow(server.generate(problem.prompt, max_new_tokens, {"enabled": True}))
    *_, full = server.generate(problem.prompt, max_new_tokens, {"enabled": False})
    print(f"\n  answer    {_answer(reply)}\n  expected  {problem.answer}\n")
    _print_comparison(problem, reply, full)
    return ledger.is_correct(problem, reply.text) and reply.window["compactions"] >= 1


def _follow(replies: Iterator[Reply]) -> Reply:
    """Print a trace while it grows, an entry per line, and its compactions; return the reply."""
    trace = Trace()
    for reply in replies:
        trace.grow(reply)
    return trace.end()


class Trace:
    """The growing trace on the screen."""

    def __init__(self) -> None:
        """Start with nothing shown."""
        self.num_shown = 0
        self.before: Reply | None = None

    def grow(self, reply: Reply) -> None:
        """Show the entries and compactions that are new in a reply."""
        before, self.before = self.before, reply
        if before is not None and reply.window["compactions"] > before.window["compactions"]:
            self._show_compaction(before, reply)
        for entry in _finished_entries(reply.text)[self.num_shown :]:
            self.num_shown += 1
            print(f"  {_shorten(entry):<70}{reply.window['window_len']:>16}", flush=True)

    def end(self) -> Reply:
        """Return the whole reply.

        Raises:
            DemoError: there is none.
        """
        if self.before is None:
            raise DemoError("the server sent no reply")
        return self.before

    def _show_compaction(self, before: Reply, reply: Reply) -> None:
        dropped = reply.window["dropped_tokens"] - before.window["dropped_tokens"]
        what = f"-- compaction {reply.window['compactions']}: {dropped} tokens dropped "
        print(f"  {what:-<70}{reply.window['window_len']:>16}", flush=True)


def _finished_entries(text: str) -> list[list[str]]:
    """Split a trace into its entries' words; what follows the last finished entry is left out."""
    entries: list[list[str]] = [[]]
    words = text.partition(ledger.END_THINK)[0].split()
    for word in words:
        closes = len(entries[-1]) > 0 and entries[-1][-1] == END_OF_ENTRY
        entries[-1].append(word)
        if closes:
            entries.append([])
    return entries[:-1]


def _shorten(entry: list[str]) -> str:
    clauses = " ".join(entry).split(" ; ")
    return " ; ".join(clauses[:CLAUSES_SHOWN]) + " ; ..."


def _answer(reply: Reply) -> str:
    words = reply.text.rpartition(ledger.END_THINK)[2].split()
    return " ".join(word for word in words if word != ledger.EOS)


def _print_comparison(problem: ledger.Problem, reply: Reply, full: Reply) -> None:
    """Print what one request held with DynTS and without."""
    ours, all_of_it = reply.window, full.window
    peak, full_peak = ours["peak_window_len"], all_of_it["peak_window_len"]
    rows = (
        ("", "DynTS", "full cache"),
        ("answer", _verdict(problem, reply), _verdict(problem, full)),
        ("entries as expected", _num_entries_right(problem, reply), _num_entries_right(problem, full)),
        ("question tokens", ours["question_len"], all_of_it["question_len"]),
        ("tokens seen", reply.seq_len, full.seq_len),
        ("compactions", ours["compactions"], all_of_it["compactions"]),
        ("tokens dropped", ours["dropped_tokens"], all_of_it["dropped_tokens"]),
        ("KV tokens held, at the end", ours["window_len"], all_of_it["window_len"]),
        ("KV tokens held, at most", peak, full_peak),
    )
    for name, left, other in rows:
        print(f"  {name:<30}{left:>12}{other:>14}")
    print(
        f"  At most {100 * peak / full_peak:.0f} % of the full cache (budget {ours['budget']}, "
        f"local window {ours['local_window']}, keep ratio {ours['keep_ratio']})."
    )


def _verdict(problem: ledger.Problem, reply: Reply) -> str:
    return "right" if ledger.is_correct(problem, reply.text) else "wrong"


def _num_entries_right(problem: ledger.Problem, reply: Reply) -> str:
    expected = _finished_entries(problem.trace)
    written = _finished_entries(reply.text)
    right = sum(pair[0] == pair[1] for pair in zip(expected, written, strict=False))
    return f"{right} of {len(expected)}"


def _print_wrapped(question: str) -> None:
    """Print the constants, four steps a line, and the query."""
    given, *steps = question.partition(" ? ")[0].split(" #")
    print(f"  {given}")
    for first in range(0, len(steps), 5):
        print("  " + "   ".join(f"#{step}" for step in steps[first : first + 5]))
    print(f"  ? {question.partition(' ? ')[2]}")


def _print_examples(server: Server, problem: ledger.Problem) -> None:
    body = {
        "text": problem.prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 700},
    }
    print(f"""
The server runs on at {server.url}. Ask it with curl:

curl -s {server.url}/generate -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}

or with the OpenAI client:

from openai import OpenAI

client = OpenAI(base_url="{server.url}/v1", api_key="none")
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
