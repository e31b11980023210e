"""SGLang's routers, as tests start them."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from sgl_dynts.harness.client import Client
from sgl_dynts.harness.server import HOST, end, free_port

ROUTERS = ("sglang_router", "smg")
needs_routers = pytest.mark.skipif(
    not all(find_spec(name) for name in ROUTERS),
    reason="SGLang's routers are not installed: pip install 'sgl-dynts[router]'",
)


@contextmanager
def router(name: str, words: Sequence[str], num_workers: int, log: Path) -> Iterator[Client]:
    """A router that knows so many healthy workers, as its clients see it."""
    port = free_port()
    command = [sys.executable, "-m", f"{name}.launch_router", "--host", HOST, "--port", str(port)]
    command += ["--prometheus-port", str(free_port()), *words]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        client = Client(f"http://{HOST}:{port}")
        _wait_for_workers(process, client, num_workers, log)
        yield client
    finally:
        end(process)


def _wait_for_workers(process: subprocess.Popen, client: Client, count: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while _healthy_workers(client) < count:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def _healthy_workers(client: Client) -> int:
    try:
        return sum(worker["is_healthy"] for worker in client.call("/workers", timeout=10)["workers"])
    except OSError:
        return 0
