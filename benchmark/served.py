"""The real server in a process of its own: started, awaited, asked, ended."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_SECONDS = 600
REQUEST_SECONDS = 3600
SECONDS_TO_END = 5
LINES_OF_A_FAILURE = 40
LOST = (urllib.error.URLError, ConnectionError, TimeoutError)
"""What a request that gets no answer raises; the first also stands for `HTTPError`, which is one."""


class ServerError(RuntimeError):
    """A server did not start, or ended; the message ends with its log."""


class Client:
    """Talks to one server.

    Raises:
        urllib.error.HTTPError: the server refused a request.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(
        self, path: str, body: dict[str, Any] | None = None, timeout: float = REQUEST_SECONDS
    ) -> Any:
        """Return the JSON that a path answers with, its text if it is none; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            text = reply.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def is_up(self) -> bool:
        """Whether the server is there."""
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5):
                return True
        except LOST:
            return False


@contextmanager
def served(url: str | None, model: Path, flags: str) -> Iterator[Client]:
    """Give a client of the server at a URL, or of one with DynTS that lives as long as the block.

    Args:
        url: of a running server; None starts one.
        model: folder of the model to serve.
        flags: more of the server's arguments.

    Raises:
        ServerError: the server did not start.
    """
    if url is not None:
        yield Client(url)
        return
    with tempfile.NamedTemporaryFile(prefix="accuracy-", suffix=".log", delete=False) as log:
        pass
    words = ["--model-path", str(model), "--attention-backend", "dynts", *shlex.split(flags)]
    with running(words, Path(log.name), {}, START_SECONDS) as client:
        yield client


def unwind_on_sigterm() -> None:
    """Let a termination signal leave this process through its ``with`` blocks, which end servers."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@contextmanager
def running(
    words: Sequence[str], log: Path, environment: Mapping[str, str], seconds: float
) -> Iterator[Client]:
    """Start a server on a free loopback port and end it with the block.

    Args:
        words: the server's arguments, all but host and port.
        log: what it writes goes there.
        environment: variables beside this process's own.
        seconds: in which it must answer.

    Raises:
        ServerError: it did not start, ended by itself, or dropped a request, with the end of its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "sglang.launch_server", *words]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        wait_until_up(client, process, log, seconds)
        try:
            yield client
        except urllib.error.HTTPError:  # an answer
            raise
        except LOST as error:
            raise ServerError(f"{error}: {fate_of(process)}; {log}:\n{tail_of(log)}") from error
        if process.poll() is not None:
            raise ServerError(f"the server ended by itself; {log}:\n{tail_of(log)}")
    finally:
        end(process)


def wait_until_up(client: Client, process: subprocess.Popen, log: Path, seconds: float) -> None:
    """Wait until a server answers.

    Raises:
        ServerError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + seconds
    while not client.is_up():
        if process.poll() is not None:
            raise ServerError(f"the server ended with {process.returncode}; {log}:\n{tail_of(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"the server did not answer within {seconds:g} s; {log}:\n{tail_of(log)}")
        time.sleep(0.5)


def fate_of(process: subprocess.Popen) -> str:
    """Say whether a server that dropped a request still runs, some seconds after."""
    with suppress(subprocess.TimeoutExpired):
        return f"the server ended with {process.wait(SECONDS_TO_END)}"
    return "the server still runs"


def tail_of(log: Path) -> str:
    """Return the end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:])


def end(process: subprocess.Popen) -> None:
    """End a server by its pid, then whatever is left of its process group."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
