"""The command ``python -m sgl_dynts.page`` as its document says it."""

import os
import subprocess
import sys
import time

import httpx
import pytest

from sgl_dynts.harness.server import free_port
from tests.unit.page.conftest import Running, Script, stand_in

SECONDS_TO_START = 300
KEY = "a-secret"


@pytest.fixture
def command():
    """Starts the page before a stand-in; gives its address once it answers."""
    sglang = Running(stand_in(Script(texts=["a", "b"])))
    with_port = [sys.executable, "-m", "sgl_dynts.page", "--url", sglang.url, "--port"]
    port = free_port()
    environment = os.environ | {"SGLANG_API_KEY": KEY}
    process = subprocess.Popen(
        [*with_port, str(port)], env=environment, stdout=subprocess.PIPE, text=True
    )
    yield process, f"http://127.0.0.1:{port}"
    process.terminate()
    process.communicate(timeout=60)
    sglang.stop()


def test_it_says_where_it_is_and_answers_there(command):
    process, url = command
    assert process.stdout.readline().endswith(f"{url}/\n")
    page = until_it_answers(url)
    assert "What a trace keeps" in page.text
    reply = httpx.post(f"{url}/ask", json={"question": "Why?"}, trust_env=False)
    assert len(reply.text.splitlines()) == 2
    assert KEY not in page.text + reply.text


def until_it_answers(url: str) -> httpx.Response:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            return httpx.get(url, trust_env=False)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the page does not answer"
            time.sleep(0.2)
