"""A server to measure: one that runs already, or one of our own; and a client for it."""

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_SECONDS = 600
REQUEST_SECONDS = 3600


class Client:
    """Talks to one server.

    Raises:
        urllib.error.HTTPError: the server refused a request.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON that a path answers with; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as reply:
            return json.load(reply)

    def is_up(self) -> bool:
        """Whether the server is there."""
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@contextmanager
def served(url: str | None, model: Path, flags: str) -> Iterator[Client]:
    """Give a client of the server at a URL, or of one that lives as long as the block.

    Args:
        url: of a running server; None starts one.
        model: folder of the model to serve.
        flags: more of the server's arguments.

    Raises:
        RuntimeError: the server did not start; names its log.
    """
    if url is not None:
        yield Client(url)
        return
    port = free_port()
    words = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
    words += ["--attention-backend", "dynts", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.NamedTemporaryFile("w", prefix="accuracy-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            [*words, *shlex.split(flags)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        _wait_until_up(client, process, log.name)
        yield client
    finally:
        end(process)


def _wait_until_up(client: Client, process: subprocess.Popen, log: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.is_up():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start; its log is {log}")
        time.sleep(1)


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
