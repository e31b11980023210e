"""A prefill and a decode server as one: each request goes to both, and the second answers."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.e2e.server import Server

WIRE = {"PYTHONPATH": str(Path(__file__).with_name("wire")), "SGLANG_HOST_IP": "127.0.0.1"}
"""Where both sides find what stands in for Mooncake, and each other."""

SECONDS = 300
"""To wait for a reply: the decode side waits for a prompt that the other one refused."""


def prefill_flags(bootstrap_port: int) -> tuple[str, ...]:
    """Beside the decode side's own; SGLang 0.5.23 needs a GPU to compute prompts with overlap."""
    return ("--disaggregation-bootstrap-port", str(bootstrap_port), "--disable-overlap-schedule")


class TwoSides:
    """Asks like a server."""

    def __init__(self, prefill: Server, bootstrap_port: int, decode: Server) -> None:
        self.prefill, self.decode, self.port = prefill, decode, bootstrap_port

    def request(self, path: str, body: dict) -> Any:
        """What the decode side answers."""
        place = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.port}
        body = body | place | {"bootstrap_room": random.getrandbits(62)}
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(self.prefill.request, path, body)
            reply = self.decode.request(path, body, SECONDS)
            first.result()
        return reply

    def abort(self, name: str) -> None:
        """End requests whose ids begin like this."""
        for side in (self.prefill, self.decode):
            side.request("/abort_request", {"rid": name})

    def generate(self, prompt: list[int], length: int, dynts: dict | None = None, **extra: Any) -> dict:
        """Greedy tokens of this length."""
        return self.request("/generate", self.decode.body(prompt, length, dynts, extra))

    def generate_all(self, jobs: list[dict]) -> list[dict]:
        """Run keyword sets of :meth:`generate` at once; results in the same order."""
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: self.generate(**job), jobs))
