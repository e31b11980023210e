"""A prefill and a decode server as one: each request goes to both, and the second answers."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.e2e.server import Asked, Server

WIRE = {"PYTHONPATH": str(Path(__file__).with_name("wire")), "SGLANG_HOST_IP": "127.0.0.1"}
"""Where both sides find what stands in for Mooncake, and each other."""

SECONDS = 300
"""To wait for a reply: the decode side waits for a prompt that the other one refused."""


def as_prefill(flags: Sequence[str], bootstrap_port: int) -> tuple[list[str], dict[str, str]]:
    """What starts the side that computes prompts for a decode side: its flags, and its environment.

    SGLang 0.5.23 needs a GPU to compute prompts with overlap.
    """
    own = ["prefill" if flag == "decode" else flag for flag in flags]
    own += ["--disaggregation-bootstrap-port", str(bootstrap_port), "--disable-overlap-schedule"]
    return own, WIRE | {"SGLANG_CPU_OMP_THREADS_BIND": "0|1" if "--tp-size" in flags else "0"}


class TwoSides(Asked):
    """Asks like a server."""

    def __init__(self, prefill: Server, bootstrap_port: int, decode: Server) -> None:
        self.prefill, self.decode, self.port = prefill, decode, bootstrap_port

    def request(self, path: str, body: dict | None = None) -> Any:
        """What the decode side answers."""
        body = self._meeting(body or {})
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(self.prefill.request, path, body)
            reply = self.decode.request(path, body, SECONDS)
            first.result()
        return reply

    def stream_of(self, body: dict) -> Iterator[dict]:
        body = self._meeting(body)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(self.prefill.request, "/generate", body)
            yield from self.decode.stream_of(body)
            first.result()

    def body(self, prompt: list[int], length: int, dynts: dict | None, extra: dict) -> dict:
        return self.decode.body(prompt, length, dynts, extra)

    def _meeting(self, body: dict) -> dict:
        """A body with the place where both sides find each other."""
        place = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.port}
        return body | place | {"bootstrap_room": random.getrandbits(62)}
